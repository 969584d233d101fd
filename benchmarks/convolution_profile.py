"""What MindSpore's deploy form spends its time on, on a CPU: oneDNN's own report, a line for each primitive it ran."""

import collections
import os
import subprocess
import sys
import time

import numpy as np

from mindrepvgg.text import markdown_table

_CALLS = 5


def measure(model, batch_size) -> str:
    """Return a markdown table of the primitives: calls, implementation, layouts, milliseconds and share of the time."""
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    command = [sys.executable, __file__, model, str(batch_size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = collections.defaultdict(lambda: [0, 0.0])
    for line in done.stdout.splitlines():
        fields = line.split(",")
        if "exec" in fields:  # ..., exec, processor, primitive, implementation, kind, formats, ..., milliseconds
            place = fields.index("exec")
            primitive, implementation, formats = fields[place + 2], fields[place + 3], fields[place + 5]
            layouts = sorted({part.split(":")[4] for part in formats.split() if part.count(":") > 4} - {""})
            counted = found[primitive, implementation, ", ".join(layouts)]
            counted[0] += 1
            counted[1] += float(fields[-1])
    whole = float(done.stdout.rsplit("whole ", 1)[1])
    # Of all calls but the first, which warms up; oneDNN reports them alike.
    rows = [
        (*kind, count // (_CALLS + 1), f"{each:.1f}", f"{100 * each / whole:.0f} %")
        for kind, (count, spent) in found.items()
        for each in [spent / (_CALLS + 1)]
    ]
    headings = ("primitive", "implementation", "layouts", "in a call", "ms", "share")
    table = markdown_table(headings, rows)
    return f"{model}, batch {batch_size}, oneDNN's own times, of {whole:.1f} ms a call:\n\n{table}"


def _run(model, batch_size):
    import mindspore as ms

    from mindrepvgg.runtime import device
    from mindrepvgg.weights.load import create_model

    device.setup("CPU")
    net = create_model(model, deploy=True).set_train(False)
    images = ms.Tensor(np.zeros((batch_size, 3, 224, 224), np.float32))
    net(images).asnumpy()
    start = time.perf_counter()
    for _ in range(_CALLS):
        net(images).asnumpy()
    print("whole", 1000 * (time.perf_counter() - start) / _CALLS)


if __name__ == "__main__":
    _run(sys.argv[1], int(sys.argv[2]))
