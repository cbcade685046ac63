"""Prints what share of each package's lines the tests ran, from the data of `make coverage`."""

from collections import Counter
from pathlib import Path

import coverage


def main():
    data = coverage.Coverage()
    data.combine()
    data.load()
    lines, missing = Counter(), Counter()
    for file in data.get_data().measured_files():
        _, statements, _, missed, _ = data.analysis2(file)
        package = str(Path(file).parent).rpartition("workflow/")[2]
        for name in (package, "together"):
            lines[name] += len(statements)
            missing[name] += len(missed)
    for name in sorted(lines, key=lambda name: (name == "together", name)):
        share = 100 * (1 - missing[name] / max(lines[name], 1))
        print(f"{share:6.1f} % of {lines[name]:6} lines  {name}")


if __name__ == "__main__":
    main()
