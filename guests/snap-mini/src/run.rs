//! The time loop: solve, check, publish, report.
//!
//! Called by `main` with the options. Time is measured around the solve and
//! around the publish separately; copies made for readers happen inside the
//! solve, on the first write to each chunk.

use crate::failure::Failure;
use crate::fields::{Fields, Published};
use crate::input::Input;
use crate::namelist::MAX_BYTES;
use crate::options::{Options, Summary};
use crate::problem::Problem;
use crate::report::{Report, StepLine, Totals};
use crate::solver::Solver;
use std::io::Read;
use std::time::Instant;

/// The deck that runs when none is given.
const DEMO: &str = include_str!("../inputs/demo.inp");

/// Solves the problem the options name.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let totals = solve(options)?;
    if options.summary == Summary::Json {
        println!("{}", totals.json());
    }
    Ok(())
}

/// Reads, solves and reports; returns the totals.
fn solve(options: &Options) -> Result<Totals, Failure> {
    let input = Input::parse(&deck(options.input.as_deref())?)?;
    let problem = Problem::new(&input)?;
    let mut fields = Fields::new(&problem, options)?;
    let mut solver = Solver::new(problem, &input)?;
    let mut report = Report::open(&options.output)?;
    report.input(&input, &memory(&fields, options))?;
    let mut totals = Totals {
        converged: true,
        flux_bytes: fields.flux_bytes(),
        arena_bytes: fields.arena_bytes(),
        ..Totals::default()
    };
    for step in 1..=input.nsteps {
        one_step(
            step,
            &input,
            options,
            &mut solver,
            &mut fields,
            &mut report,
            &mut totals,
        )?;
    }
    let problem = solver.problem();
    let unknowns = problem.nr_cells() * problem.nang * problem.quadrature.octants;
    report.totals(&totals, unknowns)?;
    Ok(totals)
}

/// One time step.
fn one_step(
    step: u64,
    input: &Input,
    options: &Options,
    solver: &mut Solver,
    fields: &mut Fields,
    report: &mut Report,
    totals: &mut Totals,
) -> Result<(), Failure> {
    let last = step == input.nsteps;
    let started = Instant::now();
    let outcome = solver.step(fields.flux_mut()?);
    let solve = started.elapsed();

    let is_printed = input.popout == 2 || (input.popout == 1 && last);
    let is_due = options.check_every != 0 && (step.is_multiple_of(options.check_every) || last);
    let started = Instant::now();
    if is_due || is_printed {
        fields.check(step)?;
    }
    totals.check_ms += started.elapsed().as_secs_f64() * 1e3;

    // The diamond scheme yields the flux at the middle of the step.
    let time = (step as f64 - 0.5) * solver.problem().dt;
    let started = Instant::now();
    let published = fields.publish(step, time)?;
    let publish = started.elapsed();

    totals.steps = step;
    totals.sweeps += outcome.sweeps;
    totals.converged &= outcome.converged;
    totals.checksum = fields.checksum;
    totals.solve_ms.push(solve.as_secs_f64() * 1e3);
    match published {
        Published::Generation(_) => {
            totals.published += 1;
            totals.publish_us.push(publish.as_secs_f64() * 1e6);
        }
        Published::Dropped => totals.dropped += 1,
        Published::Off => {}
    }
    report.step(&StepLine {
        step,
        time,
        outcome: &outcome,
        spectrum: is_printed.then_some(&fields.spectrum),
        solve,
        published,
        publish,
    })
}

/// The text of the deck: a file, standard input, or the demo.
fn deck(path: Option<&str>) -> Result<String, Failure> {
    let source: Box<dyn Read> = match path {
        None => return Ok(DEMO.to_owned()),
        Some("-") => Box::new(std::io::stdin()),
        Some(path) => Box::new(
            std::fs::File::open(path)
                .map_err(|error| Failure::new(format!("opening {path}"), error))?,
        ),
    };
    // One byte more than allowed, so that the parser sees the excess.
    let most = MAX_BYTES as u64 + 1;
    let mut text = String::new();
    source
        .take(most)
        .read_to_string(&mut text)
        .map_err(|error| Failure::new(format!("reading {}", path.unwrap_or("-")), error))?;
    Ok(text)
}

/// One phrase that says where the flux lives.
fn memory(fields: &Fields, options: &Options) -> String {
    match fields.arena_bytes() {
        0 => format!(
            "ordinary memory, {} bytes; no enclave or broker here",
            fields.flux_bytes()
        ),
        bytes => format!(
            "arena {}, {bytes} bytes, chunk {} bytes, {} banks",
            options.arena,
            options.chunk.bytes(),
            options.banks
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a deck without output.
    fn totals(deck: &str) -> Totals {
        // A broker that happens to run here is none of this test's business.
        xasm::select(xasm::Choice::Off).unwrap();
        let path = std::env::temp_dir().join(format!(
            "snap-mini-{}-{:?}.inp",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, deck).unwrap();
        let options = Options {
            input: Some(path.to_str().unwrap().to_owned()),
            output: "/dev/null".to_owned(),
            ..Options::default()
        };
        let totals = solve(&options);
        std::fs::remove_file(&path).unwrap();
        totals.unwrap()
    }

    const DECK: &str = "&invar ndimen=3 nx=6 ny=5 nz=4 lx=3.0 ly=2.5 lz=2.0 nang=2 ng=3 \
                        epsi=1.0D-5 iitm=20 oitm=40 timedep=1 tf=1.0 nsteps=3 mat_opt=1 src_opt=1 /";

    #[test]
    fn a_run_converges_and_repeats_bit_for_bit() {
        let first = totals(DECK);
        assert_eq!((first.steps, first.published, first.dropped), (3, 0, 0));
        assert!(first.converged);
        assert_eq!(first.solve_ms.len(), 3);
        assert_eq!(first.checksum, totals(DECK).checksum);
        assert_ne!(
            first.checksum,
            totals(&DECK.replace("nsteps=3", "nsteps=4")).checksum
        );
    }

    #[test]
    fn the_shipped_decks_are_valid() {
        let inputs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs");
        let flux_mib = |name: &str| {
            let text = std::fs::read_to_string(inputs.join(name)).unwrap();
            let input = Input::parse(&text).unwrap();
            let cells: usize = input.cells.iter().product();
            (cells * input.ng * 8) >> 20
        };
        assert_eq!(flux_mib("small.inp"), 2);
        assert_eq!(flux_mib("medium.inp"), 8);
        assert!(flux_mib("large.inp") >= 32);
        assert_eq!(Input::parse(DEMO).unwrap().nsteps, 20);
    }

    #[test]
    fn a_missing_deck_is_named() {
        let failure = deck(Some("/nonexistent/deck.inp")).unwrap_err().to_string();
        assert!(failure.contains("/nonexistent/deck.inp"), "{failure}");
    }
}
