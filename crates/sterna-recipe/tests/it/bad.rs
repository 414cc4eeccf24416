//! Recipes that are wrong: `tests/recipes/bad/NAME.yaml` and what is said about it in `NAME.stderr`.
//!
//! Add a file and run with `UPDATE_STDERR=1` to write its text; look at it before you commit it.

use std::{fs, path::Path};

use sterna_recipe::parse;

#[test]
fn every_bad_recipe_says_what_is_wrong() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recipes/bad");
    let mut recipes: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    recipes.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    recipes.sort();
    assert!(!recipes.is_empty(), "the folder is there");
    let mut differing = Vec::new();
    for path in recipes {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let said = match parse(Path::new(name), &text, &[]) {
            Ok(_) => "no error\n".to_owned(),
            Err(errors) => format!("{errors}\n"),
        };
        let expected_path = path.with_extension("stderr");
        if std::env::var_os("UPDATE_STDERR").is_some() {
            fs::write(&expected_path, &said).unwrap();
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if said != expected || said == "no error\n" {
            differing.push(format!("{name}: expected\n{expected}\nbut it said\n{said}"));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_of_the_same_form() {
    let said =
        sterna_recipe::load(Path::new("no-such-folder/recipe.yaml"), &[]).unwrap_err().to_string();
    insta::assert_snapshot!(said, @r"
    error: cannot read `no-such-folder/recipe.yaml`: No such file or directory (os error 2)
     --> no-such-folder/recipe.yaml
      = hint: the recipe is the first argument: a path to a YAML file

    1 error in `no-such-folder/recipe.yaml`
    ");
}
