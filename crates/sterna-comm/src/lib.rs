//! Ranks, mesh, rendezvous and collectives. Knows ranks, never models.
