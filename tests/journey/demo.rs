//! The demo: needs nothing, shows everything, and ends well.

use crate::desk::Desk;

#[test]
fn the_demo_runs_to_its_end_and_leaves_a_folder_in_which_commands_work() {
    let desk = Desk::new();
    let said = desk.crossfade.succeed(&["demo", "--folder", "shown"]);
    let folder = desk.path("shown");
    assert!(folder.is_dir(), "{said}");
    assert!(said.stdout.contains("shown"), "the folder is named\n{said}");
    let spec = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|kind| kind == "toml"))
        .unwrap_or_else(|| panic!("the demo leaves a spec\n{said}"));
    let spec = spec.to_str().unwrap();
    desk.crossfade.succeed(&["check", spec]);
    desk.crossfade.succeed(&["plan", spec]);
}
