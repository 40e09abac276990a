"""`make bench`: one line per workload, its name first and its ratio to stock TRL last."""

from . import encoding


def main() -> None:
    print(encoding.line(), flush=True)


if __name__ == "__main__":
    main()
