"""Serve an exported network over HTTP with Ray Serve: pictures in, classes as JSON out; README.md says how."""

import argparse
import asyncio
import os
import signal
import sys

# Ray reads these when it is imported: HAProxy in place of a proxy in Python, and no second thread for our coroutines.
for name, value in {"ENABLE_HA_PROXY": 1, "RUN_USER_CODE_IN_SEPARATE_THREAD": 0, "CONTROL_LOOP_INTERVAL_S": 1}.items():
    os.environ.setdefault(f"RAY_SERVE_{name}", str(value))

import ray
from ray import serve
from starlette import formparsers, requests, responses
from starlette.exceptions import HTTPException as Refusal

from mindrepvgg.data.decode import told_pixels
from mindrepvgg.deployment.predictor import Predictor

OPTIONS = {"host": "127.0.0.1", "port": 8000, "metrics_port": 8001, "address": "", "engine": "onnxruntime"}
OPTIONS |= {"replicas": 1, "threads": 2, "engine_threads": 1, "batch": 8, "wait_ms": 2.0, "queue": 64, "seconds": 10.0}
OPTIONS |= {"pictures": 16, "megabytes": 8.0, "megapixels": 25.0}


@serve.deployment
class Classifier:
    def __init__(self, options):
        self.options, self.waiting = options, asyncio.Queue()
        self.predictor = Predictor(options.model, engine=options.engine, num_threads=options.engine_threads)
        self.tasks = [asyncio.ensure_future(self.compute()) for _ in range(options.threads)]

    async def compute(self):
        while True:
            batch = [await self.waiting.get()]
            await asyncio.sleep(self.options.wait_ms / 1000)
            batch += [self.waiting.get_nowait() for _ in range(min(self.waiting.qsize(), self.options.batch - 1))]
            try:
                found = await asyncio.to_thread(self.predictor, [file for file, _ in batch])
            except Exception as error:  # each request of the batch raises it, and Ray logs it and answers 500
                found = [error] * len(batch)
            for (_, future), result in zip(batch, found, strict=True):
                if not future.done():  # nobody waits for it after the time limit
                    future.set_result((result, len(batch)))

    async def __call__(self, request):
        try:
            return await asyncio.wait_for(self.answer(request), self.options.seconds)
        except Refusal as refusal:
            status, reason = refusal.status_code, refusal.detail
        except (formparsers.MultiPartException, requests.ClientDisconnect) as error:
            status, reason = 400, str(error)
        except asyncio.TimeoutError:
            status, reason = 504, f"no answer within {self.options.seconds:g} seconds"
        return responses.JSONResponse({"error": reason}, status)

    async def answer(self, request):
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            parser = formparsers.MultiPartParser(request.headers, self.body(request), max_files=self.options.pictures)
            fields = (await parser.parse()).multi_items()
            files = [(field.filename, await field.read()) for _, field in fields if not isinstance(field, str)]
        else:
            files = [("the picture", b"".join([part async for part in self.body(request)]))]
        if not files:
            raise Refusal(422, "there is no picture in the form")
        for name, content in files:
            if await asyncio.to_thread(told_pixels, content) > self.options.megapixels * 1e6:
                raise Refusal(413, f"{name} has more than {self.options.megapixels:g} million pixels")
        futures = [asyncio.get_running_loop().create_future() for _ in files]
        for item in zip(files, futures, strict=True):
            self.waiting.put_nowait(item)
        found = await asyncio.gather(*futures)
        for result, _ in found:
            if isinstance(result, Exception):
                raise result
            if result.error:
                raise Refusal(422, result.error)
        results, sizes = [result.to_dict() for result, _ in found], [str(size) for _, size in found]
        return responses.JSONResponse({"results": results}, headers={"Batch-Sizes": ",".join(sizes)})

    async def body(self, request):
        size, read = int(request.headers.get("content-length", 0)), 0
        async for part in request.stream():
            if max(size, read := read + len(part)) > self.options.megabytes * 1e6:
                raise Refusal(413, f"the body has more than {self.options.megabytes:g} million bytes")
            yield part


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="an exported file, .onnx or .xml; on several nodes, at this path on each")
    for name, value in OPTIONS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=" ")
    options = parser.parse_args()
    ray.init(options.address) if options.address else ray.init(_metrics_export_port=options.metrics_port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    serve.start(http_options={"host": options.host, "port": options.port})
    kept = {"num_replicas": options.replicas, "ray_actor_options": {"num_cpus": options.threads}}
    app = Classifier.options(**kept, max_ongoing_requests=options.queue, max_queued_requests=options.queue)
    serve.run(app.bind(options), blocking=True, route_prefix="/classify", logging_config={"enable_access_log": False})
