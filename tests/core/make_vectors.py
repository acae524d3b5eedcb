"""Writes xxh64_vectors.h: XXH64 of a fixed buffer at many lengths and seeds, by the xxhash package.

Run it from this directory, with the package installed: `python make_vectors.py > xxh64_vectors.h`.
The buffer is that of xxHash's own sanity check (tests/sanity_test.c there): byte i is the top
byte of a 64-bit generator that starts at PRIME32 and is multiplied by PRIME64 at each step.
"""

import xxhash

PRIME32 = 2654435761
PRIME64 = 11400714785074694797
SEEDS = (0, PRIME32, 0x0123456789ABCDEF, 2**64 - 1)
LENGTHS = (*range(72), 95, 96, 97, 127, 128, 129, 222, 255, 256, 257, 1023, 1024, 2367)


def sanity_buffer(size: int) -> bytes:
    """`size` bytes of xxHash's sanity buffer."""
    state, out = PRIME32, bytearray()
    for _ in range(size):
        out.append(state >> 56)
        state = state * PRIME64 % 2**64
    return bytes(out)


def main() -> None:
    """Prints the header."""
    buffer = sanity_buffer(max(LENGTHS))
    print("/* Written by make_vectors.py with the xxhash package; do not edit. */")
    print("static const struct {\n    unsigned len;\n    unsigned long long seed, digest;")
    print("} xxh64_vectors[] = {")
    for seed in SEEDS:
        for length in LENGTHS:
            digest = xxhash.xxh64_intdigest(buffer[:length], seed)
            print(f"    {{{length}, {seed:#x}ull, {digest:#018x}ull}},")
    print("};")


if __name__ == "__main__":
    main()
