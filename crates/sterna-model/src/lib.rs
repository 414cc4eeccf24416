//! A decoder built from a Hugging Face config: blocks, Ulysses attention, weight names.
