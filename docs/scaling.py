"""What data-parallel training costs on GPUs: prints the tables of docs/scaling.md, from the networks' shapes and assumptions.

    python docs/scaling.py

Nothing here is a measurement. A step takes the time of its computation plus that of its reduction: `steps.sum_over_replicas`
starts after the whole backward pass. Units: seconds, bytes, bytes/s, multiply-adds an image, floating-point operations/s.
"""

import math
import os
import typing

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras  # noqa: E402

import alexnet  # noqa: E402

NETWORKS = (  # name, pixels of a side, classes
    ("alexnet", 224, 1000), ("alexnet_tower", 32, 10), ("alexnet_mini", 32, 10), ("VGG16", 224, 1000), ("ResNet50", 224, 1000))
BYTES_OF_FLOAT32 = 4
SCALARS = 3  # loss, correct answers and stop requests travel with the gradients
PASSES_OF_PACKING = 4  # concat reads and writes every gradient, split again
OPERATIONS_OF_A_STEP = 3 * 2  # the backward pass is two forward passes; a multiply-add is two operations
ALL_REDUCES_OF_A_BATCH_NORM = 5  # Keras sums sum, sum of squares and count forward, and two gradients backward
LIMIT = 0.1  # of the step, for the reduction
PUBLISHED_RESNET50 = {"float32": 909, "bfloat16": 2375}  # images/s of one A100; the second in float16


class Gpu(typing.NamedTuple):
    """One GPU: {precision: peak operations/s}, memory bandwidth, and the share of each that training is assumed to reach."""

    peak: dict
    compute_share: float
    memory: float
    memory_share: float


class Link(typing.NamedTuple):
    """What joins two GPUs that follow one another in the ring, one direction: nominal bandwidth, assumed share, latency."""

    name: str
    nominal: float
    share: float
    latency: float

    @property
    def bandwidth(self):
        """Assumed bytes/s."""
        return self.nominal * self.share


class Network(typing.NamedTuple):
    """Counts of one network; "parameters" are the trainable ones, whose gradients are reduced."""

    name: str
    parameters: int
    multiply_adds: int
    batch_norms: int
    parts: dict  # {"convolutions" or "dense layers": (parameters, multiply-adds)}


A100 = Gpu({"float32": 156e12, "bfloat16": 312e12}, 0.2, 1555e9, 0.8)
H100 = Gpu({"float32": 494.7e12, "bfloat16": 989.4e12}, 0.2, 3350e9, 0.8)
NVLINK, PCIE = Link("NVLink", 300e9, 230 / 300, 3.4e-6), Link("PCIe", 31.5e9, 20 / 31.5, 5.7e-6)
NVLINK_OF_H100 = NVLINK._replace(nominal=450e9)
FAST, SLOW = Link("100 Gbit/s", 12.5e9, 0.4, 9.6e-6), Link("25 Gbit/s", 3.125e9, 0.6, 9.6e-6)
SETUPS = tuple(
    [(f"{gpus} GPUs, {link.name}", gpus, link) for link in (NVLINK, PCIE) for gpus in (2, 4, 8)]
    + [(f"{machines} machines of 8, {link.name}", 8 * machines, link) for link in (FAST, SLOW) for machines in (2, 4)])


def multiply_adds(layer):
    """Of one image through a layer, forward: the kernel's size times the places where it is applied; biases do not count."""
    if isinstance(layer, keras.layers.Dense):
        return math.prod(layer.kernel.shape)
    if isinstance(layer, keras.layers.Conv2D):
        height, width = layer.output.shape[1:3]
        return height * width * math.prod(layer.kernel.shape)
    if layer.weights and not isinstance(layer, keras.layers.BatchNormalization):
        raise NotImplementedError(f"{layer.name}: no rule for the multiply-adds of a {type(layer).__name__}")
    return 0


def count(name, pixels, num_classes, options=None):
    """The `Network` that `alexnet.build` makes of these arguments."""
    # Shapes are enough: in this scope Keras makes no weights, so that VGG16's 553 MB cost neither memory nor time.
    with keras.StatelessScope(initialize_variables=False):
        model = alexnet.build(name, num_classes, (pixels, pixels, 3), options=options)
    kinds = {"convolutions": keras.layers.Conv2D, "dense layers": keras.layers.Dense}
    parts = {}
    for part, kind in kinds.items():
        layers = [layer for layer in model.layers if isinstance(layer, kind)]
        parts[part] = (sum(layer.count_params() for layer in layers), sum(map(multiply_adds, layers)))
    return Network(
        name, sum(math.prod(weight.shape) for weight in model.trainable_variables), sum(map(multiply_adds, model.layers)),
        sum(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers), parts)


def payload(network):
    """Bytes of the one packed vector that every replica gives to the all-reduce; float32 under every precision."""
    return BYTES_OF_FLOAT32 * (network.parameters + SCALARS)


def bytes_sent(num_bytes, gpus):
    """Bytes that each GPU sends, and receives, in a ring all-reduce: the sum goes round once, the result once."""
    return 2 * (gpus - 1) / gpus * num_bytes


def packing_seconds(network, gpu=A100):
    """Seconds that copying the gradients into one vector and back takes."""
    return PASSES_OF_PACKING * payload(network) / (gpu.memory * gpu.memory_share)


def reduction_seconds(network, gpus, link, gpu=A100):
    """Seconds of packing and the all-reduce of the gradients; the slowest link of the ring is `link`."""
    if gpus == 1:
        return 0.0
    return packing_seconds(network, gpu) + bytes_sent(payload(network), gpus) / link.bandwidth + 2 * (gpus - 1) * link.latency


def batch_norm_seconds(network, gpus, link):
    """Seconds of the all-reduces inside batch normalizations: latency alone, they carry a few kilobytes each."""
    return network.batch_norms * ALL_REDUCES_OF_A_BATCH_NORM * 2 * (gpus - 1) * link.latency


def image_seconds(network, precision="float32", gpu=A100):
    """Seconds that one image costs a GPU, forward and backward."""
    return OPERATIONS_OF_A_STEP * network.multiply_adds / (gpu.peak[precision] * gpu.compute_share)


def smallest_batch(network, reduction, precision):
    """Images a GPU and step from which on `reduction` seconds are at most LIMIT of the step."""
    return math.ceil((1 / LIMIT - 1) * reduction / image_seconds(network, precision))


def rounded(number):
    """`number` as text with two significant digits: the assumptions bear no more."""
    digits = 2 - 1 - math.floor(math.log10(number))
    return f"{round(number, digits):,.{max(digits, 0)}f}"


def table(head, *rows):
    """A Markdown table; all but the first column to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def networks_table(networks):
    """Parameters, bytes and work of each network."""
    rows = []
    for network in networks:
        sent = [f"{bytes_sent(payload(network), gpus) / 1e6:,.1f}" for gpus in (2, 4, 8, 16, 32)]
        operations = OPERATIONS_OF_A_STEP * network.multiply_adds
        rows.append([
            f"`{network.name}`", f"{network.parameters:,}", *sent, f"{network.multiply_adds / 1e6:,.1f}",
            f"{operations / 1e9:,.2f}", f"{network.multiply_adds / network.parameters:,.1f}"])
    sizes = ["MB sent, N = 2", "N = 4", "N = 8", "N = 16", "N = 32"]
    work = ["million multiply-adds an image", "GFLOP an image and step", "multiply-adds a parameter"]
    return table(["network", "trainable parameters", *sizes, *work], *rows)


def parts_table(network):
    """Where a network has its parameters and where its work."""
    rows = []
    for part, (parameters, work) in network.parts.items():
        shares = f"{parameters / network.parameters:.1%}", f"{work / network.multiply_adds:.1%}"
        rows.append([part, f"{parameters:,}", shares[0], f"{work:,}", shares[1]])
    return table([f"`{network.name}`", "parameters", "share", "multiply-adds an image", "share"], *rows)


def by_setup(networks, corner, cell):
    """A table with a row for each of SETUPS; `cell(network, seconds)` is the text for a network whose reduction takes so long."""
    rows = []
    for setup, gpus, link in SETUPS:
        costs = [(network, reduction_seconds(network, gpus, link)) for network in networks]
        last, seconds = costs[-1]
        costs.append((last, seconds + batch_norm_seconds(last, gpus, link)))
        rows.append([setup, *(cell(*cost) for cost in costs)])
    names = [f"`{network.name}`" for network in networks]
    return table([corner, *names, f"{names[-1]} with its batch norms"], *rows)


def batches(network, seconds):
    """The smallest batch at each precision, as text."""
    return " / ".join(rounded(smallest_batch(network, seconds, precision)) for precision in A100.peak)


def asides_table(networks):
    """Single figures that the text speaks of."""
    paper, resnet, narrow = networks[0], networks[-1], count("alexnet", 224, 1000, "dense_units=256")
    (one, *ring), (two, gpus, link) = SETUPS[2], SETUPS[6]
    rows = []
    for images, setup, *place in ((16, one, *ring), (128, one, *ring), (128, two, gpus, link)):
        seconds = reduction_seconds(paper, *place)
        share = seconds / (seconds + images * image_seconds(paper))
        rows.append([f"`alexnet`, {images} images a GPU, {setup}: the reduction's share of the step", f"{share:.0%}"])
    batch = smallest_batch(paper, reduction_seconds(paper, gpus, link), "float32")
    small_batch = smallest_batch(narrow, reduction_seconds(narrow, gpus, link), "float32")
    newer = reduction_seconds(paper, 8, NVLINK_OF_H100, H100) / image_seconds(paper, gpu=H100)
    computation = 256 * image_seconds(resnet)
    speedup = 8 * computation / (computation + reduction_seconds(resnet, *ring))
    rows += [
        [f"`alexnet`, {two}: images of the *global* batch at a share of {LIMIT:.0%}", rounded(gpus * batch)],
        ["`alexnet` with `dense_units=256`: trainable parameters", f"{narrow.parameters:,}"],
        [f"the same, {two}: images a GPU at a share of {LIMIT:.0%}", rounded(small_batch)],
        ["`alexnet`: milliseconds of packing and splitting, part of the times above", rounded(1e3 * packing_seconds(paper))],
        [f"`alexnet`, {one}: images a GPU with H100 [9] over those with A100", rounded(
            newer / (reduction_seconds(paper, *ring) / image_seconds(paper)))],
        ["`ResNet50`: all-reduces in its batch norms, each step", resnet.batch_norms * ALL_REDUCES_OF_A_BATCH_NORM],
        [f"`ResNet50`, 256 images a GPU, {one}, without those: speed over one GPU (7.70 is published [2])", f"{speedup:.2f}"],
    ]
    for precision, speed in PUBLISHED_RESNET50.items():
        reached = speed * OPERATIONS_OF_A_STEP * resnet.multiply_adds / A100.peak[precision]
        rows.append([f"`ResNet50` at the published {speed:,} images/s [2]: share of the {precision} peak", f"{reached:.0%}"])
    return table(["float32 where nothing else is said", "figure"], *rows)


def assumptions_table():
    """What the arithmetic takes for granted; the page lists the sources by these numbers."""
    rows = []
    for precision, peak in A100.peak.items():
        used = peak * A100.compute_share / 1e12
        rows.append([f"A100, {precision}, TFLOP/s", f"{peak / 1e12:g} [1]", f"{A100.compute_share:.0%} [2]", f"{used:.1f}"])
    used = A100.memory * A100.memory_share / 1e9
    rows.append(["A100, memory, GB/s", f"{A100.memory / 1e9:,.0f} [1]", f"{A100.memory_share:.0%}", f"{used:,.0f}"])
    for link, nominal, share in ((NVLINK, " [1]", 3), (PCIE, " [4]", 5), (FAST, "", 6), (SLOW, "", 7)):
        published, used = f"{link.nominal / 1e9:g}{nominal}", f"{link.bandwidth / 1e9:g}"
        rows.append([f"{link.name}, one direction, GB/s", published, f"{link.share:.0%} [{share}]", used])
    latencies = "; ".join(f"{link.latency * 1e6:g}" for link in (NVLINK, PCIE, FAST))
    rows.append(["latency of a hop: NVLink; PCIe; Ethernet, microseconds", f"{latencies} [8]", "", latencies])
    return table(["assumption", "published", "share assumed", "used"], *rows)


def blocks():
    """{name: Markdown} of each part of docs/scaling.md that stands between <!-- name --> and <!-- /name -->."""
    networks = [count(*network) for network in NETWORKS]
    return {
        "assumptions": assumptions_table(), "networks": networks_table(networks), "parts": parts_table(networks[0]),
        "milliseconds": by_setup(networks, "milliseconds", lambda network, seconds: rounded(1e3 * seconds)),
        "batches": by_setup(networks, " / ".join(A100.peak), batches), "asides": asides_table(networks),
    }


def main():
    """Prints every block, with its marks."""
    for name, text in blocks().items():
        print(f"<!-- {name} -->\n{text}\n<!-- /{name} -->\n")


if __name__ == "__main__":
    main()
