"""Makes the tables of docs/scaling.md with the arithmetic of docs/scaling.py, so that no figure is copied by hand.

    python docs/make_scaling.py

`tests/docs/test_scaling.py` makes the tables again and compares them with the page.
"""

import math
import pathlib

from pages import filled
from scaling import (
    A100,
    ALL_REDUCES_OF_A_BATCH_NORM,
    FAST,
    H100,
    LIMIT,
    NVLINK,
    NVLINK_OF_H100,
    OPERATIONS_OF_A_STEP,
    PCIE,
    SLOW,
    batch_norm_seconds,
    bytes_sent,
    count,
    image_seconds,
    packing_seconds,
    payload,
    reduction_seconds,
    smallest_batch,
)

PAGE = pathlib.Path(__file__).with_name("scaling.md")
NETWORKS = (  # name, pixels of a side, classes
    ("alexnet", 224, 1000), ("alexnet_tower", 32, 10), ("alexnet_mini", 32, 10), ("VGG16", 224, 1000), ("ResNet50", 224, 1000))
PUBLISHED_RESNET50 = {"float32": 909, "bfloat16": 2375}  # images/s of one A100; the second in float16
SETUPS = tuple(
    [(f"{gpus} GPUs, {link.name}", gpus, link) for link in (NVLINK, PCIE) for gpus in (2, 4, 8)]
    + [(f"{machines} machines of 8, {link.name}", 8 * machines, link) for link in (FAST, SLOW) for machines in (2, 4)])


def rounded(number):
    """`number` as text with two significant digits, because the assumptions are not more exact than that."""
    digits = 2 - 1 - math.floor(math.log10(number))
    return f"{round(number, digits):,.{max(digits, 0)}f}"


def table(head, *rows):
    """A Markdown table. All columns except the first are aligned to the right."""
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
    work = ["million multiply-adds per image", "GFLOP per image and step", "multiply-adds per parameter"]
    return table(["network", "trainable parameters", *sizes, *work], *rows)


def parts_table(network):
    """How a network's parameters and its work are divided between convolutions and dense layers."""
    rows = []
    for part, (parameters, work) in network.parts.items():
        shares = f"{parameters / network.parameters:.1%}", f"{work / network.multiply_adds:.1%}"
        rows.append([part, f"{parameters:,}", shares[0], f"{work:,}", shares[1]])
    return table([f"`{network.name}`", "parameters", "share", "multiply-adds per image", "share"], *rows)


def by_setup(networks, corner, cell):
    """A table with a row for each of SETUPS. `cell(network, seconds)` is the text for a network and the time of its reduction."""
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
    """Single figures that the text of the page mentions."""
    paper, resnet, narrow = networks[0], networks[-1], count("alexnet", 224, 1000, "dense_units=256")
    (one, *ring), (two, gpus, link) = SETUPS[2], SETUPS[6]
    rows = []
    for images, setup, *place in ((16, one, *ring), (128, one, *ring), (128, two, gpus, link)):
        seconds = reduction_seconds(paper, *place)
        share = seconds / (seconds + images * image_seconds(paper))
        rows.append([f"`alexnet`, {images} images per GPU, {setup}: the reduction's share of the step", f"{share:.0%}"])
    batch = smallest_batch(paper, reduction_seconds(paper, gpus, link), "float32")
    small_batch = smallest_batch(narrow, reduction_seconds(narrow, gpus, link), "float32")
    newer = reduction_seconds(paper, 8, NVLINK_OF_H100, H100) / image_seconds(paper, gpu=H100)
    computation = 256 * image_seconds(resnet)
    speedup = 8 * computation / (computation + reduction_seconds(resnet, *ring))
    rows += [
        [f"`alexnet`, {two}: images of the *global* batch at a share of {LIMIT:.0%}", rounded(gpus * batch)],
        ["`alexnet` with `dense_units=256`: trainable parameters", f"{narrow.parameters:,}"],
        [f"the same, {two}: images per GPU at a share of {LIMIT:.0%}", rounded(small_batch)],
        ["`alexnet`: milliseconds of packing and splitting, part of the times above", rounded(1e3 * packing_seconds(paper))],
        [f"`alexnet`, {one}: images per GPU with H100 [9], divided by those with A100", rounded(
            newer / (reduction_seconds(paper, *ring) / image_seconds(paper)))],
        ["`ResNet50`: all-reduces in its batch norms, per step", resnet.batch_norms * ALL_REDUCES_OF_A_BATCH_NORM],
        [f"`ResNet50`, 256 images per GPU, {one}, without those: speed compared with one GPU (7.70 is published [2])",
         f"{speedup:.2f}"],
    ]
    for precision, speed in PUBLISHED_RESNET50.items():
        reached = speed * OPERATIONS_OF_A_STEP * resnet.multiply_adds / A100.peak[precision]
        rows.append([f"`ResNet50` at the published {speed:,} images/s [2]: share of the {precision} peak", f"{reached:.0%}"])
    return table(["float32, unless stated otherwise", "figure"], *rows)


def assumptions_table():
    """The assumptions of the arithmetic. The numbers in brackets are those of the sources on the page."""
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
    rows.append(["latency per hop: NVLink; PCIe; Ethernet, microseconds", f"{latencies} [8]", "", latencies])
    return table(["assumption", "published", "share assumed", "used"], *rows)


def blocks():
    """All tables of the page: {name: Markdown}."""
    networks = [count(*network) for network in NETWORKS]
    return {
        "assumptions": assumptions_table(), "networks": networks_table(networks), "parts": parts_table(networks[0]),
        "milliseconds": by_setup(networks, "milliseconds", lambda network, seconds: rounded(1e3 * seconds)),
        "batches": by_setup(networks, " / ".join(A100.peak), batches), "asides": asides_table(networks),
    }


def main():
    """Updates the page."""
    PAGE.write_text(filled(PAGE, blocks()))


if __name__ == "__main__":
    main()
