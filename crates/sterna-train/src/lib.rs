//! Everything that has state across steps: ZeRO, offload, optimizer, schedule, step, metrics, export.
