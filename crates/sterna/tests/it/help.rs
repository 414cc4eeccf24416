//! What the command says about itself.

use insta::assert_snapshot;

use crate::workspace::Workspace;

#[test]
fn help_of_the_command() {
    assert_snapshot!(Workspace::new().show(&["--help"]), @"");
}

#[test]
fn help_of_train() {
    assert_snapshot!(Workspace::new().show(&["train", "-h"]), @"");
}

#[test]
fn long_help_of_train_has_the_arguments_of_arctic_training() {
    assert_snapshot!(Workspace::new().show(&["train", "--help"]), @"");
}

#[test]
fn help_of_check() {
    assert_snapshot!(Workspace::new().show(&["check", "-h"]), @"");
}

#[test]
fn help_of_data() {
    assert_snapshot!(Workspace::new().show(&["data", "-h"]), @"");
}

#[test]
fn a_wrong_argument_is_a_usage_error() {
    assert_snapshot!(Workspace::new().show(&["train", "recipe.yaml", "--num_gpu", "2"]), @"");
}

#[test]
fn a_count_of_zero_is_refused() {
    assert_snapshot!(Workspace::new().show(&["train", "recipe.yaml", "--num_gpus", "0"]), @"");
}
