//! What is wrong with a recipe, all of it at once, shown with the lines it stands on.

/// Something worth saying that is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The key it is about, as `deepspeed.steps_per_print`.
    pub key_path: String,
    /// One sentence, without a final period.
    pub text: String,
}
