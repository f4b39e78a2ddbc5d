"""The bundle: what the build half writes and the run half reads.

A bundle is a directory:

    manifest.json            `manifest.Manifest`
    weights/*.safetensors    in program layout
    programs/*.stablehlo     `jax.export` artifacts
    tokenizer/               tokenizer.json, special_tokens.json, chat_template.jinja, ...
    code/<kind of machine>/  machine code of the programs; not part of the manifest

Every program is a pure function over tuples of arrays

    (weights, kv, state, inputs) -> (kv, state, outputs)

with kv and state donated. A program that does not use one of these groups takes and returns an empty tuple
for it (`ProgramShape.uses_...`). `encode_images` takes the weights of the image encoder, and the image
features instead of kv. This package knows files, names, shapes and which program covers a dispatch; it never
imports JAX and never sees an array.
"""
