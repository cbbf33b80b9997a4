//! [`Solver`]: inner and outer iterations of a time step, and its balance.
//!
//! Called once per step by `run`, with the scalar flux array to work in (the
//! previous step's flux is the first guess). Inner iterations converge the
//! scattering inside a group, outer iterations the scattering between groups,
//! which always uses the newest fluxes. A closing sweep of every group then
//! advances the angular flux in time and yields the particle balance. Over a
//! time step the flux is the one at its middle.

use crate::failure::Failure;
use crate::input::Input;
use crate::problem::Problem;
use crate::sweep::{GroupSweep, Sweeper, Tally, TimeEdge};

/// Fluxes below this are compared absolutely.
const TINY: f64 = 1e-12;

/// One row of the iteration table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OuterRow {
    /// Inner iterations of all groups.
    pub(crate) inners: usize,
    /// Largest relative change of the flux in this outer iteration.
    pub(crate) error: f64,
}

/// What a time step did.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepOutcome {
    /// The outer iterations.
    pub(crate) outers: Vec<OuterRow>,
    /// Whether the change fell below epsi, inner iterations included.
    pub(crate) converged: bool,
    /// Particles per unit time.
    pub(crate) balance: Balance,
    /// Group sweeps, the closing ones included.
    pub(crate) sweeps: usize,
}

/// Where the particles of the source go, per unit time, all groups together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Balance {
    /// External source.
    pub(crate) source: f64,
    /// Absorbed.
    pub(crate) absorption: f64,
    /// Lost through the boundary.
    pub(crate) leakage: f64,
    /// Staying in flight until the next step.
    pub(crate) accumulation: f64,
}

impl Balance {
    /// What is unaccounted for, relative to the source.
    pub(crate) fn residual(self) -> f64 {
        (self.source - self.absorption - self.leakage - self.accumulation) / self.source
    }
}

/// The state between time steps, besides the scalar flux.
#[derive(Debug)]
pub(crate) struct Solver {
    problem: Problem,
    epsi: f64,
    most_inners: usize,
    most_outers: usize,
    sweeper: Sweeper,
    /// Angular flux at the time edge, one array per group; empty when steady.
    angular: Vec<Vec<f64>>,
    /// Source from outside the group, per cell.
    outside: Vec<f64>,
    /// Source of a sweep, per cell.
    source: Vec<f64>,
    /// Flux of one group before a sweep.
    before: Vec<f64>,
    /// Flux of all groups before an outer iteration.
    before_outer: Vec<f64>,
}

impl Solver {
    /// Makes room for a problem.
    pub(crate) fn new(problem: Problem, input: &Input) -> Result<Self, Failure> {
        let cells = problem.nr_cells();
        let angular_len = if input.timedep {
            problem.angular_len()
        } else {
            0
        };
        let angular = (0..problem.ng)
            .map(|_| zeros(angular_len))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            epsi: input.epsi,
            most_inners: input.iitm,
            most_outers: input.oitm,
            sweeper: Sweeper::new(&problem, input.fixup),
            angular,
            outside: zeros(cells)?,
            source: zeros(cells)?,
            before: zeros(cells)?,
            before_outer: zeros(cells * problem.ng)?,
            problem,
        })
    }

    /// The problem.
    pub(crate) fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Solves one time step; `flux` is `[group][cell]`.
    pub(crate) fn step(&mut self, flux: &mut [f64]) -> StepOutcome {
        let mut outers = Vec::new();
        let mut converged = false;
        while !converged && outers.len() < self.most_outers {
            self.before_outer.copy_from_slice(flux);
            let mut inners = 0;
            let mut all_groups = true;
            for group in 0..self.problem.ng {
                let (count, done) = self.inner_iterations(group, flux);
                inners += count;
                all_groups &= done;
            }
            let error = largest_change(&self.before_outer, flux);
            converged = all_groups && error <= self.epsi;
            outers.push(OuterRow { inners, error });
        }
        let balance = self.close(flux);
        let sweeps = outers.iter().map(|row| row.inners).sum::<usize>() + self.problem.ng;
        StepOutcome {
            outers,
            converged,
            balance,
            sweeps,
        }
    }

    /// Iterates one group; returns the count and whether it converged.
    fn inner_iterations(&mut self, group: usize, flux: &mut [f64]) -> (usize, bool) {
        self.gather_outside(group, flux);
        for inner in 1..=self.most_inners {
            self.sweep(group, flux, TimeEdge::Keep);
            let now = group_of(flux, group, self.problem.nr_cells());
            if largest_change(&self.before, now) <= self.epsi {
                return (inner, true);
            }
        }
        (self.most_inners, false)
    }

    /// Sweeps every group once more, forward in time, and accounts for it.
    fn close(&mut self, flux: &mut [f64]) -> Balance {
        let mut balance = Balance::default();
        for group in 0..self.problem.ng {
            self.gather_outside(group, flux);
            let tally = self.sweep(group, flux, TimeEdge::Advance);
            balance.leakage += tally.leakage;
            balance.accumulation += tally.accumulation;
        }
        let volume = self.problem.cell_volume();
        let per_group = self.problem.source.iter().sum::<f64>() * volume;
        balance.source = per_group * self.problem.ng as f64;
        for (group, flux) in flux.chunks_exact(self.problem.nr_cells()).enumerate() {
            let [a, b] = [0, 1].map(|m| self.problem.materials[m].absorption[group]);
            let absorbed =
                |(flux, &material): (&f64, &u8)| flux * if material == 0 { a } else { b };
            balance.absorption += flux
                .iter()
                .zip(&self.problem.material)
                .map(absorbed)
                .sum::<f64>()
                * volume;
        }
        balance
    }

    /// External source plus scattering from all other groups.
    fn gather_outside(&mut self, group: usize, flux: &[f64]) {
        self.outside.copy_from_slice(&self.problem.source);
        for (from, flux) in flux.chunks_exact(self.problem.nr_cells()).enumerate() {
            if from != group {
                add_scattering(&self.problem, [from, group], flux, &mut self.outside);
            }
        }
    }

    /// One sweep of one group with the scattering of its present flux.
    fn sweep(&mut self, group: usize, flux: &mut [f64], time_edge: TimeEdge) -> Tally {
        let cells = self.problem.nr_cells();
        let flux = &mut flux[group * cells..][..cells];
        self.before.copy_from_slice(flux);
        self.source.copy_from_slice(&self.outside);
        add_scattering(
            &self.problem,
            [group, group],
            &self.before,
            &mut self.source,
        );
        let run = GroupSweep {
            group,
            source: &self.source,
            angular: &mut self.angular[group],
            time_edge,
            flux,
        };
        self.sweeper.sweep(&self.problem, run)
    }
}

/// Adds the particles that scatter from one group into another.
fn add_scattering(problem: &Problem, [from, to]: [usize; 2], flux: &[f64], source: &mut [f64]) {
    let [a, b] = [0, 1].map(|material: usize| problem.materials[material].scatter[to][from]);
    for ((source, flux), &material) in source.iter_mut().zip(flux).zip(&problem.material) {
        *source += flux * if material == 0 { a } else { b };
    }
}

/// The cells of one group.
fn group_of(flux: &[f64], group: usize, cells: usize) -> &[f64] {
    &flux[group * cells..][..cells]
}

/// Largest relative change; absolute where the old flux is tiny.
fn largest_change(before: &[f64], now: &[f64]) -> f64 {
    let change = |(&before, &now): (&f64, &f64)| {
        if before.abs() > TINY {
            (now / before - 1.0).abs()
        } else {
            (now - before).abs()
        }
    };
    before.iter().zip(now).map(change).fold(0.0, f64::max)
}

/// `len` zeros, or a failure that says how many bytes were missing.
pub(crate) fn zeros(len: usize) -> Result<Vec<f64>, Failure> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| {
        Failure::new(
            "setting up the problem",
            format_args!("no memory for {} more bytes", len.saturating_mul(8)),
        )
        .hint("a deck with fewer cells, groups or angles, or an enclave with more --mem")
    })?;
    values.resize(len, 0.0);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solver(input: &Input) -> Solver {
        Solver::new(Problem::new(input).unwrap(), input).unwrap()
    }

    /// A line so long that its middle does not feel the ends.
    fn long_line(ng: usize) -> Input {
        Input {
            cells: [80, 1, 1],
            extent: [80.0, 1.0, 1.0],
            nang: 4,
            ng,
            epsi: 1e-11,
            iitm: 200,
            oitm: 200,
            ..Input::default()
        }
    }

    /// Flux of an infinite medium: total × φ = source + scattering.
    fn infinite_medium(problem: &Problem) -> Vec<f64> {
        let material = &problem.materials[0];
        let mut flux = vec![0.0; problem.ng];
        for _ in 0..2000 {
            for to in 0..problem.ng {
                let gain: f64 = (0..problem.ng)
                    .map(|f| material.scatter[to][f] * flux[f])
                    .sum();
                flux[to] = (1.0 + gain) / material.total[to];
            }
        }
        flux
    }

    #[test]
    fn a_long_uniform_line_reaches_the_infinite_medium() {
        for ng in [1, 5] {
            let input = long_line(ng);
            let mut solver = solver(&input);
            let cells = solver.problem().nr_cells();
            let mut flux = vec![0.0; cells * ng];
            let outcome = solver.step(&mut flux);
            assert!(outcome.converged);
            for (group, expected) in infinite_medium(solver.problem()).into_iter().enumerate() {
                let middle = group_of(&flux, group, cells)[cells / 2];
                assert!(
                    (middle / expected - 1.0).abs() < 1e-6,
                    "{group}: {middle} {expected}"
                );
            }
            assert!(outcome.balance.residual().abs() < 1e-9, "{outcome:?}");
        }
    }

    #[test]
    fn a_uniform_medium_follows_its_rate_equation() {
        let input = Input {
            timedep: true,
            tf: 2.0,
            nsteps: 5,
            cells: [320, 1, 1],
            ..long_line(1)
        };
        let mut solver = solver(&input);
        let material = &solver.problem().materials[0];
        let (absorption, time) = (material.absorption[0], 2.0 / (1.0 * 0.4));
        let mut flux = vec![0.0; 320];
        let mut edge = 0.0;
        for _ in 0..5 {
            assert!(solver.step(&mut flux).converged);
            let expected = (1.0 + time * edge) / (absorption + time);
            edge = 2.0 * expected - edge;
            assert!(
                (flux[160] / expected - 1.0).abs() < 1e-6,
                "{} {expected}",
                flux[160]
            );
        }
    }

    fn cube() -> Input {
        Input {
            ndimen: 3,
            cells: [6, 6, 6],
            extent: [3.0; 3],
            nang: 2,
            ng: 3,
            epsi: 1e-7,
            iitm: 50,
            oitm: 50,
            timedep: true,
            tf: 1.0,
            nsteps: 4,
            mat_opt: 1,
            src_opt: 1,
            ..Input::default()
        }
    }

    #[test]
    fn particles_are_accounted_for_in_each_step() {
        let mut solver = solver(&cube());
        let mut flux = vec![0.0; 216 * 3];
        for _ in 0..4 {
            let outcome = solver.step(&mut flux);
            assert!(outcome.converged);
            assert!(outcome.balance.residual().abs() < 1e-6, "{outcome:?}");
            assert!(outcome.balance.leakage > 0.0 && outcome.balance.accumulation > 0.0);
        }
    }

    #[test]
    fn the_solution_is_symmetric_and_repeatable() {
        let run = || {
            let mut solver = solver(&cube());
            let mut flux = vec![0.0; 216 * 3];
            solver.step(&mut flux);
            flux
        };
        let flux = run();
        assert_eq!(flux, run());
        for group in flux.chunks_exact(216) {
            for (a, b) in group.iter().zip(group.iter().rev()) {
                assert!((a / b - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn too_few_iterations_are_not_called_converged() {
        let input = Input {
            oitm: 1,
            iitm: 1,
            ..cube()
        };
        let outcome = solver(&input).step(&mut vec![0.0; 216 * 3]);
        assert!(!outcome.converged);
        assert_eq!(outcome.outers.len(), 1);
        assert_eq!(outcome.sweeps, 6);
    }
}
