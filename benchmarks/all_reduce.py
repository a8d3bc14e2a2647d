"""What summing the gradients over several GPUs costs beside what it saves, on paper.

    python -m benchmarks.all_reduce

KoBERT at batch 64, half of an H100's 798 TFLOP/s, a ring in which nothing overlaps.
"""

from storyflower.common.errors import exit_with_line

PARAMETERS = 92.19e6  # of the classifier, float32
LAYER_WEIGHTS = 85e6  # of them in matrix products
TOKENS = 64 * 35.7  # a batch
RATE = 0.5 * 798e12  # operations a second
LINKS = {"NVLink 450 GB/s": 450e9, "PCIe 25 GB/s": 25e9, "10 Gbit/s": 1.25e9}  # bytes a second


def main() -> None:
    print("| GPUs | compute |", " | ".join(LINKS), "|")
    print("| --- " * (2 + len(LINKS)) + "|")
    for count in (1, 2, 4, 8, 16, 64):
        compute = TOKENS * 6 * LAYER_WEIGHTS / RATE / count
        sums = [2 * (count - 1) / count * PARAMETERS * 4 / speed for speed in LINKS.values()]
        times = " | ".join(f"{seconds * 1e3:.1f} ms" for seconds in sums)
        print(f"| {count} | {compute * 1e3:.2f} ms | {times} |")


if __name__ == "__main__":
    exit_with_line(main)
