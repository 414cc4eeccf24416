//! YAML to RecipeFile to Recipe to Plan. Pure: no torch, environment, clock or network.
