//! No text is a panic: every recipe is accepted or told what is wrong, with the line shown.

use std::path::Path;

use proptest::prelude::*;
use sterna_recipe::parse;

proptest! {
    #[test]
    fn any_text_is_read_or_explained(text in "\\PC{0,60}(\n[ -~\t]{0,30}){0,6}") {
        if let Err(errors) = parse(Path::new("recipe.yaml"), &text, &[]) {
            prop_assert!(errors.to_string().starts_with("error: "));
        }
    }
}
