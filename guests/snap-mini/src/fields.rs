//! [`Fields`]: the arrays that readers of a snapshot see.
//!
//! Inside an enclave they live in an arena; elsewhere only the flux exists, in
//! ordinary memory, and publishing does nothing. The layout is computed first,
//! so that the arena has exactly the size it needs (and the padding that was
//! asked for).
//!
//! | variable        | type, shape        | meaning                            |
//! |-----------------|--------------------|------------------------------------|
//! | `flux`          | f64 (nx,ny,nz,ng) F | scalar flux                       |
//! | `velocity`      | f64 (ng)           | particle speed                     |
//! | `spectrum`      | f64 (ng)           | Σ cells flux × volume              |
//! | `cell_volume`   | f64                | volume of every cell               |
//! | `time`          | f64                | simulated time of the flux         |
//! | `step`          | u64                | step of the flux, from 1           |
//! | `checksum`      | u64                | of the flux, see `diagnostics`     |
//! | `checksum_step` | u64                | step `checksum` and `spectrum` are of |

use crate::diagnostics;
use crate::failure::Failure;
use crate::options::{Options, Snapshots};
use crate::problem::Problem;
use crate::solver::zeros;
use xasm::{Arena, Array, Errno, Order, Role, Var, bump};

/// Where the flux starts: on a page, behind the small arrays.
const FLUX_ALIGN: u64 = 4096;

/// Places of all arrays in the arena.
#[derive(Debug, Clone, Copy)]
struct Layout {
    velocity: Array<f64>,
    spectrum: Array<f64>,
    cell_volume: Array<f64>,
    time: Array<f64>,
    step: Array<u64>,
    checksum: Array<u64>,
    checksum_step: Array<u64>,
    flux: Array<f64>,
    bytes: u64,
}

/// Where the arrays are.
#[derive(Debug)]
enum Store {
    Arena(Box<Arena>),
    Memory(Vec<f64>),
}

/// What became of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    /// Readers can have it; its generation.
    Generation(u64),
    /// Every bank is held; this step is not published.
    Dropped,
    /// There is nothing to publish to, or it was not wanted.
    Off,
}

/// The published arrays.
#[derive(Debug)]
pub(crate) struct Fields {
    store: Store,
    layout: Layout,
    snapshots: Snapshots,
    cell_volume: f64,
    /// The latest spectrum.
    pub(crate) spectrum: Vec<f64>,
    /// The latest checksum.
    pub(crate) checksum: u64,
}

impl Layout {
    fn new(problem: &Problem) -> Option<Self> {
        let mut used = 0;
        let mut take = |len: usize, align| {
            let bytes = u64::try_from(len).ok()?.checked_mul(8)?;
            let (offset, now) = bump::place(used, bytes, align, u64::MAX)?;
            used = now;
            Some(offset)
        };
        let ng = problem.ng;
        let cells = problem.nr_cells().checked_mul(ng)?;
        Some(Self {
            velocity: Array::at(take(ng, 0)?, ng),
            spectrum: Array::at(take(ng, 0)?, ng),
            cell_volume: Array::at(take(1, 0)?, 1),
            time: Array::at(take(1, 0)?, 1),
            step: Array::at(take(1, 0)?, 1),
            checksum: Array::at(take(1, 0)?, 1),
            checksum_step: Array::at(take(1, 0)?, 1),
            flux: Array::at(take(cells, FLUX_ALIGN)?, cells),
            bytes: used,
        })
    }
}

impl Fields {
    /// Makes the arrays: in an arena inside an enclave, else in memory.
    pub(crate) fn new(problem: &Problem, options: &Options) -> Result<Self, Failure> {
        let too_large = || Failure::new("setting up the problem", "the flux is too large");
        let layout = Layout::new(problem).ok_or_else(too_large)?;
        let bytes = layout
            .bytes
            .checked_add(options.pad_bytes)
            .ok_or_else(too_large)?;
        let arena_options = xasm::Options {
            chunk: options.chunk,
            banks: options.banks,
            ..xasm::Options::default()
        };
        let store = match Arena::create(&options.arena, bytes, arena_options) {
            Ok(arena) => Store::Arena(Box::new(arena)),
            Err(Errno::ENOSYS) => Store::Memory(zeros(layout.flux.len())?),
            Err(errno) => return Err(arena_failure(options, bytes, errno)),
        };
        let mut fields = Self {
            store,
            layout,
            snapshots: options.snapshots,
            cell_volume: problem.cell_volume(),
            spectrum: zeros(problem.ng)?,
            checksum: 0,
        };
        fields
            .describe(problem)
            .map_err(|errno| arena_failure(options, bytes, errno))?;
        Ok(fields)
    }

    /// Tells readers about the variables and fills in what never changes.
    fn describe(&mut self, problem: &Problem) -> Result<(), Errno> {
        let Store::Arena(arena) = &mut self.store else {
            return Ok(());
        };
        let at = &self.layout;
        let [nx, ny, nz] = problem.cells.map(|n| n as u64);
        let ng = problem.ng as u64;
        let shape = [nx, ny, nz, ng];
        let flux = Var::array("flux", at.flux, &shape, Order::Fortran)
            .unit("cm-2 s-1")
            .axes("x,y,z,group")
            .role(Role::ElementField);
        let groups = [ng];
        let variables = [
            flux,
            Var::array("velocity", at.velocity, &groups, Order::C)
                .unit("cm s-1")
                .axes("group"),
            Var::array("spectrum", at.spectrum, &groups, Order::C)
                .unit("cm s-1")
                .axes("group"),
            Var::scalar("cell_volume", at.cell_volume).unit("cm3"),
            Var::scalar("time", at.time).unit("s"),
            Var::scalar("step", at.step),
            Var::scalar("checksum", at.checksum),
            Var::scalar("checksum_step", at.checksum_step),
        ];
        for var in &variables {
            arena.var(var)?;
        }
        arena
            .get_mut(at.velocity)?
            .copy_from_slice(&problem.velocity);
        arena.get_mut(at.cell_volume)?.fill(self.cell_volume);
        Ok(())
    }

    /// Bytes of the flux.
    pub(crate) fn flux_bytes(&self) -> u64 {
        self.layout.flux.nbytes().unwrap_or(0)
    }

    /// Bytes of the arena; 0 in ordinary memory.
    pub(crate) fn arena_bytes(&self) -> u64 {
        match &self.store {
            Store::Arena(arena) => arena.size_bytes(),
            Store::Memory(_) => 0,
        }
    }

    /// The scalar flux, `[group][cell]`, to work in.
    pub(crate) fn flux_mut(&mut self) -> Result<&mut [f64], Failure> {
        match &mut self.store {
            Store::Arena(arena) => arena.get_mut(self.layout.flux).map_err(access_failure),
            Store::Memory(flux) => Ok(flux),
        }
    }

    /// Computes spectrum and checksum of the present flux.
    pub(crate) fn check(&mut self, step: u64) -> Result<(), Failure> {
        let flux = match &self.store {
            Store::Arena(arena) => arena.get(self.layout.flux).map_err(access_failure)?,
            Store::Memory(flux) => flux,
        };
        diagnostics::spectrum(flux, self.cell_volume, &mut self.spectrum);
        self.checksum = diagnostics::checksum(flux);
        let (at, spectrum, checksum) = (self.layout, &self.spectrum, self.checksum);
        if let Store::Arena(arena) = &mut self.store {
            arena
                .get_mut(at.spectrum)
                .map_err(access_failure)?
                .copy_from_slice(spectrum);
            arena
                .get_mut(at.checksum)
                .map_err(access_failure)?
                .fill(checksum);
            arena
                .get_mut(at.checksum_step)
                .map_err(access_failure)?
                .fill(step);
        }
        Ok(())
    }

    /// Publishes the step, if that is wanted and possible.
    pub(crate) fn publish(&mut self, step: u64, time: f64) -> Result<Published, Failure> {
        let Store::Arena(arena) = &mut self.store else {
            return Ok(Published::Off);
        };
        arena
            .get_mut(self.layout.step)
            .map_err(access_failure)?
            .fill(step);
        arena
            .get_mut(self.layout.time)
            .map_err(access_failure)?
            .fill(time);
        if self.snapshots == Snapshots::Never {
            return Ok(Published::Off);
        }
        match arena.publish(step, time) {
            Ok(generation) => Ok(Published::Generation(generation)),
            Err(Errno::EAGAIN) => Ok(Published::Dropped),
            Err(errno) => Err(Failure::new(format!("publishing step {step}"), errno)),
        }
    }
}

fn arena_failure(options: &Options, bytes: u64, errno: Errno) -> Failure {
    let what = format!(
        "arena {} of {bytes} bytes, {} banks",
        options.arena, options.banks
    );
    let hint = match errno {
        Errno::EEXIST => "--arena with another name".to_owned(),
        Errno::ENOMEM => "--banks 2, a smaller deck, or an enclave with more --mem".to_owned(),
        _ => "snap-mini --help".to_owned(),
    };
    Failure::new(what, errno).hint(hint)
}

/// The arrays were placed for this arena, so this does not happen.
fn access_failure(errno: Errno) -> Failure {
    Failure::new("using the arena", errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Input;

    fn problem() -> Problem {
        let input = Input {
            ndimen: 3,
            cells: [4, 3, 2],
            ng: 5,
            ..Input::default()
        };
        Problem::new(&input).unwrap()
    }

    #[test]
    fn the_layout_is_disjoint_and_exact() {
        let at = Layout::new(&problem()).unwrap();
        let mut places = [
            (at.velocity.offset(), 40),
            (at.spectrum.offset(), 40),
            (at.cell_volume.offset(), 8),
            (at.time.offset(), 8),
            (at.step.offset(), 8),
            (at.checksum.offset(), 8),
            (at.checksum_step.offset(), 8),
            (at.flux.offset(), 4 * 3 * 2 * 5 * 8),
        ];
        places.sort_unstable();
        assert!(places.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        assert_eq!(at.flux.offset(), 4096);
        assert_eq!(at.bytes, 4096 + 960);
    }

    #[test]
    fn ordinary_memory_serves_outside_an_enclave() {
        xasm::select(xasm::Choice::Off).unwrap();
        let mut fields = Fields::new(&problem(), &Options::default()).unwrap();
        assert_eq!((fields.flux_bytes(), fields.arena_bytes()), (960, 0));
        fields.flux_mut().unwrap().fill(2.0);
        fields.check(1).unwrap();
        let expected = 2.0 * problem().cell_volume() * 24.0;
        assert!(
            fields
                .spectrum
                .iter()
                .all(|s| (s / expected - 1.0).abs() < 1e-14)
        );
        assert_eq!(fields.publish(1, 0.5), Ok(Published::Off));
    }

    #[test]
    fn a_name_that_cannot_be_is_reported() {
        let options = Options {
            arena: "x".repeat(64),
            ..Options::default()
        };
        let failure = Fields::new(&problem(), &options).unwrap_err().to_string();
        assert!(failure.contains("name too long"), "{failure}");
    }
}
