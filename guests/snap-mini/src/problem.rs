//! [`Problem`]: mesh, materials, cross sections and quadrature of an input.
//!
//! Built once, read by the sweeps. Data are made up as SNAP makes up its own:
//! one or two materials whose cross sections grow slowly with the group, a
//! source of strength 1, particle speeds that fall with the group, and angles
//! spread evenly over an octant with equal weights.

use crate::failure::Failure;
use crate::input::Input;

/// Number of materials.
pub(crate) const NR_MATERIALS: usize = 2;

/// Most bytes of ordinary memory a problem may take.
const MAX_BYTES: u64 = 1 << 40;

/// Cross sections of one material, per group, in 1/cm.
#[derive(Debug, Clone)]
pub(crate) struct Material {
    /// Total.
    pub(crate) total: Vec<f64>,
    /// Absorption.
    pub(crate) absorption: Vec<f64>,
    /// Scattering: `scatter[to][from]`.
    pub(crate) scatter: Vec<Vec<f64>>,
}

/// Directions of one octant and the coefficients of the mesh.
#[derive(Debug, Clone)]
pub(crate) struct Quadrature {
    /// Direction cosines along x, y, z per angle; 0 along missing axes.
    pub(crate) cosines: [Vec<f64>; 3],
    /// 2 cosine / cell width along x, y, z per angle.
    pub(crate) streaming: [Vec<f64>; 3],
    /// Weight of each angle; all angles of all octants add up to 1.
    pub(crate) weight: f64,
    /// Number of octants: 2, 4 or 8.
    pub(crate) octants: usize,
}

/// Everything a sweep reads that does not change in time.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    /// Cells along x, y, z.
    pub(crate) cells: [usize; 3],
    /// Cell widths in cm.
    pub(crate) widths: [f64; 3],
    /// Groups.
    pub(crate) ng: usize,
    /// Angles per octant.
    pub(crate) nang: usize,
    /// Material index per cell, x fastest.
    pub(crate) material: Vec<u8>,
    /// External source per cell, the same in every group.
    pub(crate) source: Vec<f64>,
    /// The materials.
    pub(crate) materials: [Material; NR_MATERIALS],
    /// Particle speed per group.
    pub(crate) velocity: Vec<f64>,
    /// Directions.
    pub(crate) quadrature: Quadrature,
    /// Time step; 0 when steady.
    pub(crate) dt: f64,
}

impl Problem {
    /// Builds the problem of an input.
    ///
    /// Fails when it would not fit any memory; whether it fits this machine's
    /// is found out where the arrays are made.
    pub(crate) fn new(input: &Input) -> Result<Self, Failure> {
        let needed = needed_bytes(input).filter(|&bytes| bytes <= MAX_BYTES);
        if needed.is_none() {
            return Err(Failure::new(
                "setting up the problem",
                format_args!("cells, groups and angles need more than {MAX_BYTES} bytes"),
            ));
        }
        let [nx, ny, nz] = input.cells;
        let widths = [0, 1, 2].map(|axis| input.extent[axis] / input.cells[axis] as f64);
        let mut material = Vec::with_capacity(nx * ny * nz);
        let mut source = Vec::with_capacity(nx * ny * nz);
        for (i, j, k) in indices(input.cells) {
            let inside = |place| lies_in(place, [i, j, k], input);
            material.push(u8::from(input.mat_opt != 0 && inside(input.mat_opt)));
            source.push(f64::from(u8::from(inside(input.src_opt))));
        }
        Ok(Self {
            cells: input.cells,
            widths,
            ng: input.ng,
            nang: input.nang,
            material,
            source,
            materials: [Material::new(0, input.ng), Material::new(1, input.ng)],
            velocity: (0..input.ng).map(|g| (input.ng - g) as f64).collect(),
            quadrature: Quadrature::new(input, widths),
            dt: if input.timedep {
                input.tf / input.nsteps as f64
            } else {
                0.0
            },
        })
    }

    /// Number of cells.
    pub(crate) fn nr_cells(&self) -> usize {
        self.material.len()
    }

    /// Volume of a cell in cm³ (an area or a length in fewer dimensions).
    pub(crate) fn cell_volume(&self) -> f64 {
        self.widths.iter().product()
    }

    /// 2 / (speed × time step) of a group; 0 when steady.
    pub(crate) fn time_coefficient(&self, group: usize) -> f64 {
        if self.dt > 0.0 {
            2.0 / (self.velocity[group] * self.dt)
        } else {
            0.0
        }
    }

    /// Values of the time-edge angular flux of one group.
    pub(crate) fn angular_len(&self) -> usize {
        self.nr_cells() * self.nang * self.quadrature.octants
    }
}

/// Bytes of the largest arrays together; `None` beyond 64 bits.
fn needed_bytes(input: &Input) -> Option<u64> {
    let product = |factors: &[usize]| {
        factors
            .iter()
            .try_fold(8u64, |bytes, &n| bytes.checked_mul(u64::try_from(n).ok()?))
    };
    let [nx, ny, nz] = input.cells;
    let octants = 1 << input.ndimen;
    product(&[nx, ny, nz, input.ng, input.nang, octants])?
        .checked_add(product(&[nx, ny, nz, input.ng, 4])?)
}

/// Cell indices in memory order.
fn indices(cells: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    let [nx, ny, nz] = cells;
    (0..nz).flat_map(move |k| (0..ny).flat_map(move |j| (0..nx).map(move |i| (i, j, k))))
}

/// Whether a cell lies in place 0 (everywhere), 1 (the central half of each
/// axis) or 2 (the lower half of each axis).
fn lies_in(place: u8, cell: [usize; 3], input: &Input) -> bool {
    cell.iter()
        .zip(input.cells)
        .take(input.ndimen)
        .all(|(&at, n)| match place {
            0 => true,
            1 => at >= n / 4 && at < n - n / 4,
            _ => at < n.div_ceil(2),
        })
}

impl Material {
    /// Material 0 or 1 with `ng` groups.
    fn new(index: usize, ng: usize) -> Self {
        let [absorption0, scattering0] = [[0.5, 0.5], [0.8, 1.2]][index];
        let growth = |base: f64, g: usize| base + 0.005 * g as f64;
        let absorption: Vec<f64> = (0..ng).map(|g| growth(absorption0, g)).collect();
        let scattering: Vec<f64> = (0..ng).map(|g| growth(scattering0, g)).collect();
        let total = absorption
            .iter()
            .zip(&scattering)
            .map(|(a, s)| a + s)
            .collect();
        let share = |from, to| scatter_share(index, ng, from, to);
        let row = |to| {
            (0..ng)
                .map(|from| scattering[from] * share(from, to))
                .collect()
        };
        Self {
            total,
            absorption,
            scatter: (0..ng).map(row).collect(),
        }
    }
}

/// Part of the scattering in group `from` that ends in group `to`.
///
/// A fixed part stays, a tenth goes up (to lower numbers), the rest down, each
/// spread evenly; what has nowhere to go stays.
fn scatter_share(material: usize, ng: usize, from: usize, to: usize) -> f64 {
    let stay = [0.2, 0.5][material];
    let (up, down) = (0.1, 0.9 - stay);
    let above = from;
    let below = ng - 1 - from;
    match to.cmp(&from) {
        std::cmp::Ordering::Less => up / above as f64,
        std::cmp::Ordering::Greater => down / below as f64,
        std::cmp::Ordering::Equal => {
            let no_up = if above == 0 { up } else { 0.0 };
            let no_down = if below == 0 { down } else { 0.0 };
            stay + no_up + no_down
        }
    }
}

impl Quadrature {
    fn new(input: &Input, widths: [f64; 3]) -> Self {
        let spacing = 1.0 / input.nang as f64;
        let mu: Vec<f64> = (0..input.nang)
            .map(|n| (n as f64 + 0.5) * spacing)
            .collect();
        let eta: Vec<f64> = match input.ndimen {
            1 => vec![0.0; input.nang],
            _ => mu.iter().map(|m| 1.0 - m).collect(),
        };
        let rest = |(m, e): (&f64, &f64)| (1.0 - m * m - e * e).max(0.0).sqrt();
        let xi: Vec<f64> = match input.ndimen {
            3 => mu.iter().zip(&eta).map(rest).collect(),
            _ => vec![0.0; input.nang],
        };
        let cosines = [mu, eta, xi];
        let streaming = [0, 1, 2].map(|axis| {
            let along = |cosine: &f64| 2.0 * cosine / widths[axis];
            cosines[axis].iter().map(along).collect()
        });
        let octants = 1 << input.ndimen;
        let weight = 1.0 / (octants * input.nang) as f64;
        Self {
            cosines,
            streaming,
            weight,
            octants,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(ndimen: usize, cells: [usize; 3]) -> Input {
        Input {
            ndimen,
            cells,
            nang: 3,
            ng: 4,
            ..Input::default()
        }
    }

    #[test]
    fn scattering_loses_nothing_to_other_groups() {
        for ng in [1, 2, 7] {
            for (index, material) in (0..).zip([Material::new(0, ng), Material::new(1, ng)]) {
                for from in 0..ng {
                    let out: f64 = material.scatter.iter().map(|row| row[from]).sum();
                    let expected = material.total[from] - material.absorption[from];
                    assert!((out - expected).abs() < 1e-14, "{index} {ng} {from}");
                }
            }
        }
    }

    #[test]
    fn directions_are_unit_vectors_and_weights_add_up() {
        let problem = Problem::new(&input(3, [2, 2, 2])).unwrap();
        let q = &problem.quadrature;
        for n in 0..3 {
            let square: f64 = q.cosines.iter().map(|c| c[n] * c[n]).sum();
            assert!((square - 1.0).abs() < 1e-14);
        }
        assert!((q.weight * 24.0 - 1.0).abs() < 1e-14);
    }

    #[test]
    fn places_are_symmetric_or_at_the_origin() {
        let centre = Input {
            mat_opt: 1,
            src_opt: 2,
            ..input(2, [8, 8, 1])
        };
        let problem = Problem::new(&centre).unwrap();
        let mirrored: Vec<u8> = problem.material.iter().rev().copied().collect();
        assert_eq!(problem.material, mirrored);
        assert_eq!(problem.material.iter().filter(|&&m| m == 1).count(), 16);
        assert_eq!(problem.source.iter().sum::<f64>(), 16.0);
        assert_eq!(problem.source.first(), Some(&1.0));
    }

    #[test]
    fn a_problem_no_machine_can_hold_is_refused() {
        let huge = Input {
            nang: 1024,
            ng: 1024,
            ..input(3, [4096; 3])
        };
        assert!(Problem::new(&huge).is_err());
    }
}
