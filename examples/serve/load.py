"""Load on the service: closed loops (each of some connections asks again at once), then an open loop (by a clock).

python load.py http://127.0.0.1:8000 --pid PID --title "one replica" --table README.md
python load.py network.onnx --threads 2       # the same work in one process, without a service

The open loop sends at --share of the largest closed-loop rate, at random (Poisson) times drawn beforehand. A latency
counts from the time a request was due, so that a late client is no help to the service. Exit status 1 after an error.
"""

import argparse
import collections
import io
import os
import queue
import random
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from client import connect, post
from PIL import Image

from mindrepvgg.deployment.predictor import Predictor

START, END = "<!-- load.py writes from here -->\n", "<!-- to here -->\n"
HEAD = "| what | load | images/s | p50, p95, p99 ms | mean batch | cores: service, client | MB | failed |\n"


def photo(seed=0, size=(500, 375)):
    """A JPEG of smooth noise, of the size that photos of ImageNet usually have."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


BODIES = [photo(seed) for seed in range(8)]


def processes(pid):
    """A process and all that it started."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []


def summed(pid, what):
    """The sum of `what` over a process and all that it started, without those that end meanwhile."""
    total = 0.0
    for process in processes(pid):
        try:
            total += what(process)
        except psutil.NoSuchProcess:
            continue
    return total


def resident(pid):
    """MB in memory, of each process without what it shares with others."""
    return summed(pid, lambda process: process.memory_full_info().uss) / 1e6


def cpu(pid):
    """Seconds of processor time."""
    return summed(pid, lambda process: sum(process.cpu_times()[:2]))


class Tally:
    """What was met: latencies in seconds, statuses, and how many pictures were in batches of each size."""

    def __init__(self):
        self.latencies, self.statuses, self.batches = [], collections.Counter(), collections.Counter()

    def ask(self, connection, due):
        """Send a picture and note how it went."""
        try:
            status, headers, _ = post(connection, random.choice(BODIES))
        except Exception as error:  # any way in which a connection ends
            connection.close()
            status, headers = type(error).__name__, {}
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(time.perf_counter() - due)
            self.batches.update(map(int, headers["Batch-Sizes"].split(",")))


def run(load, work, threads, pid):
    """Let threads work, each with a connection. Returns images a second, the table's cells and failures."""
    tally, memory, ended = Tally(), [], threading.Event()

    def watch():
        while not ended.wait(60):
            memory.append(resident(pid))

    start, used, own = time.perf_counter(), cpu(pid), time.process_time()
    workers = [threading.Thread(target=work, args=(tally, start)) for _ in range(threads)]
    watcher = threading.Thread(target=watch)
    for thread in (*workers, watcher):
        thread.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    used, own = (cpu(pid) - used) / seconds, (time.process_time() - own) / seconds if pid != os.getpid() else 0.0
    ended.set()
    watcher.join()
    rate = len(tally.latencies) / seconds
    latencies = ", ".join(f"{1000 * value:.0f}" for value in np.percentile(tally.latencies or [np.nan], (50, 95, 99)))
    failed = {status: count for status, count in tally.statuses.items() if status != 200}
    # One batch of n pictures is met n times.
    mean = sum(tally.batches.values()) / (sum(count / n for n, count in tally.batches.items()) or 1)
    shown = [memory[i] for i in sorted({0, len(memory) // 2, len(memory) - 1})] if memory else [resident(pid)]
    megabytes = ", ".join(f"{value:.0f}" for value in shown)
    cells = [load, f"{rate:.1f}", latencies, f"{mean:.1f}", f"{used:.2f}, {own:.2f}", megabytes, str(failed or 0)]
    print(" | ".join(cells), dict(sorted(tally.batches.items())), [f"{value:.0f}" for value in memory], flush=True)
    return rate, cells, failed


def closed(url, seconds, connections, pid=None):
    """Each connection asks again as soon as it has its answer."""

    def work(tally, start):
        connection = connect(url)
        while (now := time.perf_counter()) < start + seconds:
            tally.ask(connection, now)
        connection.close()

    return run(f"{connections} connections", work, connections, pid)


def open_loop(url, seconds, rate, pid=None, connections=64):
    """Requests are due at times drawn beforehand, whatever the service does."""
    due, moments, now = queue.SimpleQueue(), random.Random(0), 0.0
    while (now := now + moments.expovariate(rate)) < seconds:
        due.put(now)

    def work(tally, start):
        connection = connect(url)
        while True:
            try:
                moment = start + due.get_nowait()
            except queue.Empty:
                break
            time.sleep(max(0.0, moment - time.perf_counter()))
            tally.ask(connection, moment)
        connection.close()

    return run(f"{rate:.1f} requests/s, {seconds:.0f} s", work, connections, pid)


def in_one_process(path, engine, seconds, threads, batch=8):
    """What the service does with pictures, without a service: threads that decode, resize, compute and name classes."""
    predict, files = Predictor(path, engine=engine, num_threads=1), [("picture", body) for body in BODIES[:batch]]

    def work(tally, start):
        while time.perf_counter() < start + seconds:
            now = time.perf_counter()
            predict(files)
            tally.latencies += [time.perf_counter() - now] * batch
            tally.batches[batch] += batch

    return run(f"{threads} threads", work, threads, os.getpid())


def write(path, title, rows):
    """Replace the rows of a title in the table of a Markdown file, or put them at its end."""
    before, rest = Path(path).read_text().split(START)
    table, after = rest.split(END)
    others = [line for line in table.splitlines(keepends=True)[2:] if not line.startswith(f"| {title} |")]
    lines = ["| " + " | ".join([title, *row]) + " |\n" for row in rows]
    head = [HEAD, "|---" * HEAD.count(" | ") + "|---|\n"]
    Path(path).write_text("".join([before, START, *head, *others, *lines, END, after]))


def main():
    """Measure with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="the service's URL, or an exported file")
    parser.add_argument("--connections", default="1,32", help="of the closed loops (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="of each closed loop (%(default)s)")
    parser.add_argument("--open_seconds", type=float, default=120, help="of the open loop (%(default)s); 0: none")
    parser.add_argument("--share", type=float, default=0.8, help="of saturation, in the open loop (%(default)s)")
    parser.add_argument("--pid", type=int, help="the service's process, to measure it and its children")
    parser.add_argument("--engine", help="of an exported file")
    parser.add_argument("--threads", type=int, default=2, help="of an exported file (%(default)s)")
    parser.add_argument("--title", default="service", help="the table's rows (%(default)s)")
    parser.add_argument("--table", help="a Markdown file, to write the rows to")
    options = parser.parse_args()
    if "://" in options.target:
        closed(options.target, 5, 32)  # to warm up
        counts = map(int, options.connections.split(","))
        runs = [closed(options.target, options.seconds, count, options.pid) for count in counts]
        if options.open_seconds:
            rate = options.share * max(rate for rate, _, _ in runs)
            runs.append(open_loop(options.target, options.open_seconds, rate, options.pid))
    else:
        runs = [in_one_process(options.target, options.engine, options.seconds, options.threads)]
    if options.table:
        write(options.table, options.title, [cells for _, cells, _ in runs])
    return 1 if any(failed for _, _, failed in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
