#!/bin/bash
# after_training.sh CHECKPOINT: give a checkpoint that axolotl, LLaMA-Factory or mergekit saved the fields of all engines.
# transformers 5 saves rope_parameters only; the factors come from the folder that the training started from.
set -euo pipefail
checkpoint=$1
longrope export "$checkpoint" --factors extended -o "$checkpoint-extended"
longrope eval "$checkpoint-extended" --lengths 8k,32k --data my-texts/ --retrieval passkey -o "$checkpoint-eval"
# The last command, as its exit code is 1 if any engine departs from the factors: look at the one that you serve with.
longrope check "$checkpoint-extended" --engine all
