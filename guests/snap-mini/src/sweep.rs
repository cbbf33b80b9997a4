//! One transport sweep of one group over all octants.
//!
//! Called by `solver`, and where nearly all time goes. Diamond difference in
//! space and time with vacuum boundaries: cell by cell along the directions of
//! flight, the centre flux follows from the incoming edges, the outgoing edges
//! from the centre. All angles of an octant are done together, because their
//! data lie side by side.

use crate::problem::{NR_MATERIALS, Problem};

/// What a sweep does with the angular flux at the time edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeEdge {
    /// Leaves it: the step is still iterating.
    Keep,
    /// Moves it to the end of the step.
    Advance,
}

/// Particles per unit time that a sweep accounts for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Tally {
    /// Through the boundary.
    pub(crate) leakage: f64,
    /// Into the time edge.
    pub(crate) accumulation: f64,
}

/// One group's data for a sweep.
#[derive(Debug)]
pub(crate) struct GroupSweep<'a> {
    /// The group.
    pub(crate) group: usize,
    /// Isotropic source per cell, scattering included.
    pub(crate) source: &'a [f64],
    /// Time-edge angular flux, `[octant][cell][angle]`; empty when steady.
    pub(crate) angular: &'a mut [f64],
    /// What becomes of it.
    pub(crate) time_edge: TimeEdge,
    /// Out: scalar flux per cell.
    pub(crate) flux: &'a mut [f64],
}

/// Working memory of sweeps.
#[derive(Debug)]
pub(crate) struct Sweeper {
    fixup: bool,
    /// 1 / (total + streaming + time) per material and angle.
    inverse: [Vec<f64>; NR_MATERIALS],
    /// Cell-centre angular flux of one cell.
    centre: Vec<f64>,
    /// Incoming edge flux along x: one cell.
    edge_x: Vec<f64>,
    /// Incoming edge flux along y: one row of cells.
    edge_y: Vec<f64>,
    /// Incoming edge flux along z: one plane of cells.
    edge_z: Vec<f64>,
    /// Stands for the time edge of a steady problem.
    no_time: Vec<f64>,
}

impl Sweeper {
    /// Working memory for a problem.
    pub(crate) fn new(problem: &Problem, fixup: bool) -> Self {
        let nang = problem.nang;
        let [nx, ny, _] = problem.cells;
        Self {
            fixup,
            inverse: std::array::from_fn(|_| vec![0.0; nang]),
            centre: vec![0.0; nang],
            edge_x: vec![0.0; nang],
            edge_y: vec![0.0; nang * nx],
            edge_z: vec![0.0; nang * nx * ny],
            no_time: vec![0.0; nang],
        }
    }

    /// Sweeps one group and replaces its scalar flux.
    pub(crate) fn sweep(&mut self, problem: &Problem, mut run: GroupSweep<'_>) -> Tally {
        let time = problem.time_coefficient(run.group);
        let [x, y, z] = &problem.quadrature.streaming;
        for (inverse, material) in self.inverse.iter_mut().zip(&problem.materials) {
            let total = material.total[run.group] + time;
            for (n, inverse) in inverse.iter_mut().enumerate() {
                *inverse = 1.0 / (total + x[n] + y[n] + z[n]);
            }
        }
        run.flux.fill(0.0);
        let mut tally = Tally::default();
        for octant in 0..problem.quadrature.octants {
            self.sweep_octant(problem, octant, time, &mut run, &mut tally);
        }
        tally
    }

    /// Sweeps one octant; bit 0, 1, 2 of its number = flight against x, y, z.
    fn sweep_octant(
        &mut self,
        problem: &Problem,
        octant: usize,
        time: f64,
        run: &mut GroupSweep<'_>,
        tally: &mut Tally,
    ) {
        let [nx, ny, nz] = problem.cells;
        let [dx, dy, dz] = problem.widths;
        let nang = problem.nang;
        let along = |axis: usize, n: usize, step: usize| {
            if octant >> axis & 1 == 0 {
                step
            } else {
                n - 1 - step
            }
        };
        self.edge_z.fill(0.0);
        for k in (0..nz).map(|step| along(2, nz, step)) {
            self.edge_y.fill(0.0);
            for j in (0..ny).map(|step| along(1, ny, step)) {
                self.edge_x.fill(0.0);
                for i in (0..nx).map(|step| along(0, nx, step)) {
                    let place = Place {
                        octant,
                        i,
                        plane: j * nx + i,
                        cell: (k * ny + j) * nx + i,
                    };
                    tally.accumulation += self.sweep_cell(problem, place, time, run);
                }
                tally.leakage += self.outflow(problem, 0, dy * dz, &self.edge_x);
            }
            for row in self.edge_y.chunks_exact(nang) {
                tally.leakage += self.outflow(problem, 1, dx * dz, row);
            }
        }
        for cell in self.edge_z.chunks_exact(nang) {
            tally.leakage += self.outflow(problem, 2, dx * dy, cell);
        }
    }

    /// Particles that leave through a face of `area`.
    fn outflow(&self, problem: &Problem, axis: usize, area: f64, edge: &[f64]) -> f64 {
        let cosines = &problem.quadrature.cosines[axis];
        let flow: f64 = edge
            .iter()
            .zip(cosines)
            .map(|(edge, cosine)| edge * cosine)
            .sum();
        flow * area * problem.quadrature.weight
    }

    /// One cell, all angles of the octant; returns what the time edge gains.
    #[inline]
    fn sweep_cell(
        &mut self,
        problem: &Problem,
        place: Place,
        time: f64,
        run: &mut GroupSweep<'_>,
    ) -> f64 {
        let nang = problem.nang;
        let material = usize::from(problem.material[place.cell]);
        let angular = (place.octant * problem.nr_cells() + place.cell) * nang;
        let mut cell = Cell {
            edges: [
                &mut self.edge_x[..],
                &mut self.edge_y[place.i * nang..][..nang],
                &mut self.edge_z[place.plane * nang..][..nang],
                match run.angular {
                    [] => &mut self.no_time[..],
                    _ => &mut run.angular[angular..][..nang],
                },
            ],
            streaming: &problem.quadrature.streaming,
            inverse: &self.inverse[material],
            time,
            total: problem.materials[material].total[run.group],
            source: run.source[place.cell],
        };
        let centre = &mut self.centre[..];
        let lowest = cell.solve(centre);
        let gain = if self.fixup && lowest < 0.0 {
            cell.leave_fixed(centre, run.time_edge)
        } else {
            cell.leave(centre, run.time_edge)
        };
        run.flux[place.cell] += problem.quadrature.weight * centre.iter().sum::<f64>();
        gain * 0.5 * time * problem.quadrature.weight * problem.cell_volume()
    }
}

/// Where a cell is.
#[derive(Debug, Clone, Copy)]
struct Place {
    octant: usize,
    /// Index along x.
    i: usize,
    /// Index in the xy plane.
    plane: usize,
    /// Index in the mesh.
    cell: usize,
}

/// Index of the time edge among the edges; 0 to 2 are x, y, z.
const TIME: usize = 3;

/// One cell with all angles of one octant.
struct Cell<'a> {
    /// Incoming, later outgoing, angular flux on the edges x, y, z, time. Along
    /// an axis the problem does not have the incoming flux is always 0.
    edges: [&'a mut [f64]; 4],
    /// 2 cosine / width per axis and angle.
    streaming: &'a [Vec<f64>; 3],
    /// 1 / (total + streaming + time) per angle.
    inverse: &'a [f64],
    /// 2 / (speed × time step).
    time: f64,
    /// Total cross section.
    total: f64,
    /// Isotropic source.
    source: f64,
}

impl Cell<'_> {
    /// Solves for the centre; returns the lowest outgoing flux, at most 0.
    #[inline]
    fn solve(&self, centre: &mut [f64]) -> f64 {
        let nang = centre.len();
        let [ex, ey, ez, et] = &self.edges;
        let (ex, ey, ez, et) = (&ex[..nang], &ey[..nang], &ez[..nang], &et[..nang]);
        let [hx, hy, hz] = self.streaming;
        let (hx, hy, hz) = (&hx[..nang], &hy[..nang], &hz[..nang]);
        let inverse = &self.inverse[..nang];
        let mut lowest = 0.0f64;
        for n in 0..nang {
            // The edge along x comes from the cell just solved, so it is
            // added last: everything else need not wait for it.
            let known = self.source + hy[n] * ey[n] + hz[n] * ez[n] + self.time * et[n];
            let flux = (known + hx[n] * ex[n]) * inverse[n];
            let highest_edge = ex[n].max(ey[n]).max(ez[n].max(et[n]));
            centre[n] = flux;
            lowest = lowest.min(2.0 * flux - highest_edge);
        }
        lowest
    }

    /// Replaces the edges by the outgoing ones; returns the gain of the time
    /// edge, summed over angles.
    #[inline]
    fn leave(&mut self, centre: &[f64], time_edge: TimeEdge) -> f64 {
        let nang = centre.len();
        let [ex, ey, ez, et] = &mut self.edges;
        let (ex, ey, ez) = (&mut ex[..nang], &mut ey[..nang], &mut ez[..nang]);
        for n in 0..nang {
            ex[n] = 2.0 * centre[n] - ex[n];
            ey[n] = 2.0 * centre[n] - ey[n];
            ez[n] = 2.0 * centre[n] - ez[n];
        }
        let mut gain = 0.0;
        if time_edge == TimeEdge::Advance && self.time > 0.0 {
            for (edge, centre) in et.iter_mut().zip(centre) {
                let outgoing = 2.0 * centre - *edge;
                gain += outgoing - *edge;
                *edge = outgoing;
            }
        }
        gain
    }

    /// As [`Cell::leave`], with every negative outgoing flux set to 0 and the
    /// centre solved anew so that the cell stays in balance.
    fn leave_fixed(&mut self, centre: &mut [f64], time_edge: TimeEdge) -> f64 {
        let mut gain = 0.0;
        for (n, centre) in centre.iter_mut().enumerate() {
            let incoming = [0, 1, 2, TIME].map(|edge| self.edges[edge][n]);
            let [hx, hy, hz] = [0, 1, 2].map(|axis| self.streaming[axis][n]);
            let (flux, outgoing) = self.fix(incoming, [hx, hy, hz, self.time]);
            *centre = flux;
            for (edge, outgoing) in self.edges.iter_mut().zip(outgoing).take(TIME) {
                edge[n] = outgoing;
            }
            if time_edge == TimeEdge::Advance && self.time > 0.0 {
                gain += outgoing[TIME] - incoming[TIME];
                self.edges[TIME][n] = outgoing[TIME];
            }
        }
        gain
    }

    /// Centre and outgoing fluxes of one angle, none of them negative.
    fn fix(&self, incoming: [f64; 4], coefficients: [f64; 4]) -> (f64, [f64; 4]) {
        // 1 where the diamond relation holds, 0 where the outgoing flux is 0.
        let mut open = [1.0; 4];
        loop {
            let mut inflow = self.source;
            let mut removal = self.total;
            for edge in 0..4 {
                inflow += 0.5 * coefficients[edge] * incoming[edge] * (1.0 + open[edge]);
                removal += coefficients[edge] * open[edge];
            }
            let flux = inflow / removal;
            let outgoing: [f64; 4] =
                std::array::from_fn(|edge| open[edge] * (2.0 * flux - incoming[edge]));
            let closed = open;
            for (open, outgoing) in open.iter_mut().zip(outgoing) {
                if outgoing < 0.0 {
                    *open = 0.0;
                }
            }
            if open == closed {
                return (flux, outgoing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Input;

    /// Sweeps group 0 once from empty space with source 1 everywhere.
    fn swept(input: &Input) -> (Problem, Vec<f64>, Tally) {
        let problem = Problem::new(input).unwrap();
        let mut flux = vec![0.0; problem.nr_cells()];
        let len = if input.timedep {
            problem.angular_len()
        } else {
            0
        };
        let mut angular = vec![0.0; len];
        let run = GroupSweep {
            group: 0,
            source: &vec![1.0; problem.nr_cells()],
            angular: &mut angular,
            time_edge: TimeEdge::Advance,
            flux: &mut flux,
        };
        let tally = Sweeper::new(&problem, input.fixup).sweep(&problem, run);
        (problem, flux, tally)
    }

    /// Source minus removal, leakage and accumulation, relative to the source.
    fn imbalance(problem: &Problem, flux: &[f64], tally: Tally) -> f64 {
        let volume = problem.cell_volume();
        let removed: f64 = flux
            .iter()
            .zip(&problem.material)
            .map(|(f, &m)| f * problem.materials[usize::from(m)].total[0] * volume)
            .sum();
        let source = volume * problem.nr_cells() as f64;
        (source - removed - tally.leakage - tally.accumulation) / source
    }

    fn cube(n: usize) -> Input {
        Input {
            ndimen: 3,
            cells: [n; 3],
            nang: 4,
            mat_opt: 1,
            ..Input::default()
        }
    }

    #[test]
    fn one_sweep_balances_with_and_without_fixup_and_time() {
        for fixup in [false, true] {
            for timedep in [false, true] {
                let extent = [20.0; 3];
                let input = Input {
                    fixup,
                    timedep,
                    tf: 0.3,
                    extent,
                    ..cube(6)
                };
                let (problem, flux, tally) = swept(&input);
                let error = imbalance(&problem, &flux, tally);
                assert!(error.abs() < 1e-12, "{fixup} {timedep}: {error}");
                assert!(tally.leakage > 0.0);
                assert_eq!(tally.accumulation > 0.0, timedep);
            }
        }
    }

    #[test]
    fn a_symmetric_problem_has_a_symmetric_flux() {
        let (_, flux, _) = swept(&cube(6));
        for (a, b) in flux.iter().zip(flux.iter().rev()) {
            assert!((a / b - 1.0).abs() < 1e-13);
        }
        for (at, value) in flux.iter().enumerate() {
            let (i, j, k) = (at % 6, at / 6 % 6, at / 36);
            let swapped = flux[(k * 6 + i) * 6 + j];
            assert!((value / swapped - 1.0).abs() < 1e-13, "x and y are alike");
        }
    }

    #[test]
    fn fixup_leaves_no_negative_flux() {
        let corner = Input {
            src_opt: 2,
            extent: [60.0; 3],
            ..cube(8)
        };
        let sweep_corner = |fixup| {
            let problem = Problem::new(&Input {
                fixup,
                ..corner.clone()
            })
            .unwrap();
            let mut flux = vec![0.0; problem.nr_cells()];
            let run = GroupSweep {
                group: 0,
                source: &problem.source,
                angular: &mut [],
                time_edge: TimeEdge::Keep,
                flux: &mut flux,
            };
            Sweeper::new(&problem, fixup).sweep(&problem, run);
            flux
        };
        assert!(
            sweep_corner(false).iter().any(|&f| f < 0.0),
            "the case needs fixing"
        );
        assert!(sweep_corner(true).iter().all(|&f| f >= 0.0));
    }
}
