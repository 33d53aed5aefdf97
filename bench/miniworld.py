"""How many rows of the mini world one core makes a second: requests, scenes, images, texts.

Run: ``python bench/miniworld.py [--vocab full] [--size 128]``. Times are the process's own (CPU seconds), after a
warm-up that is as long as the measurement, so that caches are as full as in a long run.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np

from irg_mini import world


def samples(count: int, seed: int, **options: object) -> Iterator[tuple[world.Request, world.Scene]]:
    """Random requests with a right scene each."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield world.sample_pair(rng, background=0.2, **options)


def rate(count: int, work: Callable[[], object]) -> float:
    """Items a CPU second."""
    start = time.process_time()
    work()
    return count / (time.process_time() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", help="core, geneval or full (default: what sampling takes by itself)")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rows", type=int, default=3000)
    args = parser.parse_args()
    options = {"vocab": args.vocab} if args.vocab else {}
    list(samples(200, 0, **options))
    print(f"requests and scenes  {rate(args.rows, lambda: list(samples(args.rows, 1, **options))):8.0f} a second")
    warm, pairs = list(samples(args.rows, 2, **options)), list(samples(args.rows, 3, **options))
    for _, scene in warm:
        world.render(scene, args.size)
    images = rate(len(pairs), lambda: [world.render(scene, args.size) for _, scene in pairs])
    print(f"images, {args.size:3} px     {images:8.0f} a second")
    rng = np.random.default_rng(4)

    def texts() -> None:
        for request, scene in pairs:
            world.caption(request, rng, "varied")
            flawed, flaws = world.corrupt(request, scene, rng)
            seen = world.see(flawed)
            world.think(request, scene)
            world.reflect(request, flaws, world.correct(request, seen, scene, rng), seen)

    print(f"prompt, T1, T2       {rate(len(pairs), texts):8.0f} a second")


if __name__ == "__main__":
    main()
