"""The matrix product that programs for a CPU call: compiled by LLVM for the CPU that is here."""
