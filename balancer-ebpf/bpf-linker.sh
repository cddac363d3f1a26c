#!/bin/sh
# rustc always passes the CPU of its target specification, `--cpu generic`. Instruction set v3 (32-bit arithmetic and
# jumps, Linux 5.1) makes the program shorter, and the linker accepts the option only once.
for argument; do
    shift
    [ "$argument" = generic ] && argument=v3
    set -- "$@" "$argument"
done
# Packet fields lie at any alignment; one load instead of one for each byte (the kernel allows it where the CPU does).
exec bpf-linker --cpu-features=+allows-misaligned-mem-access "$@"
