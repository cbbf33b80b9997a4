//! The demo inside the emulated AMD machine, for hosts without /dev/kvm.
//!
//! Called by `demo` there. The program that runs inside is this one, linked
//! statically: the enclave, the figures and the proof that nothing is left are
//! the real ones, of an emulated machine. The sizes are smaller.

use super::machine::NODE_MIB;
use super::root::HOST_TARGET;
use super::{Boot, MODULES, NEEDS, Place, QEMU_MIB, require_memory, require_programs};
use crate::workspace::Workspace;
use crate::{image, setup};

/// Where `demo.sh` and the input come from in the source tree.
const SOURCES: &str = "ci/xtask/src/hw_lane";
/// What the machine puts in front of the demo's lines.
const MARK: &str = "DEMO ";

/// Runs `demo ARGUMENTS` inside and returns the lines it printed.
///
/// # Errors
/// When the machine cannot be had, or the demo fails in it.
pub(crate) fn demo(workspace: &Workspace, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
    require_memory(2 * NODE_MIB + QEMU_MIB)?;
    require_programs(&NEEDS)?;
    setup::add_target(HOST_TARGET)?;
    let place = Place::take(workspace)?;
    let mut lines = Vec::new();
    let fill = |root: &super::root::Root| {
        root.add_programs(workspace)?;
        let xtask = ["build", "--release", "--bins", "--target", HOST_TARGET];
        let xtask = image::arguments(&xtask, &["xtask".to_owned()]);
        for file in image::build(workspace, "demo: this program", &xtask)? {
            root.add(&file, "programs/xtask")?;
        }
        root.add_init()?;
        let sources = workspace.root.join(SOURCES);
        root.add(&sources.join("demo.sh"), "steps/demo.sh")?;
        root.write("demo.arguments", &arguments.join(" "))?;
        root.add(&sources.join("demo.inp"), crate::demo::INPUT)
    };
    // The demo reserves its huge pages itself, as on any host.
    let parameters = "LANE_MODES=ring0 LANE_HUGE=0";
    place.boot(Boot::usual(), &MODULES, fill, parameters, |line, shown| {
        if let Some(said) = line.strip_prefix(MARK) {
            lines.push(said.trim_end().to_owned());
        } else if let Some(shown) = shown {
            eprintln!("{shown}");
        }
    })?;
    Ok(lines)
}
