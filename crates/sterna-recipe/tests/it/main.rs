//! Recipes from text to plan.

mod accepted;
mod bad;
