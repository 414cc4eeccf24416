//! Recipes from text to plan.

mod accepted;
mod bad;
mod plan;
mod reference_page;
