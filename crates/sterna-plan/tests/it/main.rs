//! Recipes with models and ranks to plans.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod fuzz;
mod plan;
mod published;
