//! [`Input`]: the keys of a SNAP deck.
//!
//! Read from a namelist by [`Input::parse`], which checks every range, so that
//! the solver never meets a value it cannot use. Keys that steer what this
//! program does not have (ranks, threads, output files) are accepted when
//! their value is a number and listed in [`Input::without_effect`]; unknown
//! keys are errors.

use crate::failure::Failure;
use crate::namelist::{self, Assignment, shorten};

/// A problem as the deck states it; defaults are SNAP's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Input {
    /// Dimensions, 1 to 3.
    pub(crate) ndimen: usize,
    /// Cells along x, y, z.
    pub(crate) cells: [usize; 3],
    /// Extent along x, y, z in cm.
    pub(crate) extent: [f64; 3],
    /// Angles per octant.
    pub(crate) nang: usize,
    /// Energy groups.
    pub(crate) ng: usize,
    /// Convergence criterion: largest relative change of the flux.
    pub(crate) epsi: f64,
    /// Most inner iterations per group and outer.
    pub(crate) iitm: usize,
    /// Most outer iterations per step.
    pub(crate) oitm: usize,
    /// Whether the problem depends on time.
    pub(crate) timedep: bool,
    /// End of the simulated time.
    pub(crate) tf: f64,
    /// Time steps; 1 when steady.
    pub(crate) nsteps: u64,
    /// Where material 2 is: 0 nowhere, 1 centre, 2 corner.
    pub(crate) mat_opt: u8,
    /// Where the source is: 0 everywhere, 1 centre, 2 corner.
    pub(crate) src_opt: u8,
    /// Whether negative fluxes are repaired.
    pub(crate) fixup: bool,
    /// Spectrum in the report: 0 no, 1 at the end, 2 each cycle.
    pub(crate) popout: u8,
    /// Keys that were accepted and change nothing here.
    pub(crate) without_effect: Vec<String>,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            ndimen: 1,
            cells: [4, 1, 1],
            extent: [1.0; 3],
            nang: 1,
            ng: 1,
            epsi: 1.0e-4,
            iitm: 5,
            oitm: 5,
            timedep: false,
            tf: 0.0,
            nsteps: 1,
            mat_opt: 0,
            src_opt: 0,
            fixup: true,
            popout: 0,
            without_effect: Vec::new(),
        }
    }
}

/// Keys of SNAP that change nothing here.
const WITHOUT_EFFECT: [&str; 14] = [
    "npey", "npez", "ichunk", "nthreads", "nnested", "nmom", "scatp", "it_det", "fluxp", "soloutp",
    "kplane", "swp_typ", "angcpy", "multiswp",
];

/// Most cells along one axis.
const MAX_CELLS: usize = 4096;
/// Most angles per octant, and most groups.
const MAX_ANGLES_GROUPS: usize = 1024;

impl Input {
    /// Reads a deck.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let mut input = Self::default();
        for assignment in namelist::parse(text, "invar")? {
            input.set(&Value(&assignment))?;
        }
        input.settle()
    }

    /// Takes one assignment; a later one replaces an earlier.
    fn set(&mut self, value: &Value<'_>) -> Result<(), Failure> {
        let [x, y, z] = [0, 1, 2];
        match value.0.key.as_str() {
            "ndimen" => self.ndimen = value.count(3)?,
            "nx" => self.cells[x] = value.count(MAX_CELLS)?,
            "ny" => self.cells[y] = value.count(MAX_CELLS)?,
            "nz" => self.cells[z] = value.count(MAX_CELLS)?,
            "lx" => self.extent[x] = value.positive()?,
            "ly" => self.extent[y] = value.positive()?,
            "lz" => self.extent[z] = value.positive()?,
            "nang" => self.nang = value.count(MAX_ANGLES_GROUPS)?,
            "ng" => self.ng = value.count(MAX_ANGLES_GROUPS)?,
            "epsi" => self.epsi = value.positive()?,
            "iitm" => self.iitm = value.count(10_000)?,
            "oitm" => self.oitm = value.count(10_000)?,
            "timedep" => self.timedep = value.switch()?,
            "tf" => self.tf = value.real()?,
            "nsteps" => self.nsteps = value.count(1_000_000)? as u64,
            "mat_opt" => self.mat_opt = value.choice(2)?,
            "src_opt" => self.src_opt = value.choice(2)?,
            "fixup" => self.fixup = value.switch()?,
            "popout" => self.popout = value.choice(2)?,
            key if WITHOUT_EFFECT.contains(&key) => {
                value.number()?;
                self.without_effect.retain(|known| known != key);
                self.without_effect.push(key.to_owned());
            }
            key => return Err(value.refuse(format_args!("unknown key '{}'", shorten(key)))),
        }
        Ok(())
    }

    /// Checks what several keys say together.
    fn settle(mut self) -> Result<Self, Failure> {
        let flat = |axis: usize| self.cells[axis] == 1;
        if (self.ndimen < 2 && !flat(1)) || (self.ndimen < 3 && !flat(2)) {
            let [_, ny, nz] = self.cells;
            let why = format!("ndimen={} with ny={ny}, nz={nz}", self.ndimen);
            return Err(Failure::new("reading the deck", why));
        }
        if self.timedep && self.tf <= 0.0 {
            let why = format!("timedep=1 needs tf > 0, it is {}", self.tf);
            return Err(Failure::new("reading the deck", why));
        }
        if !self.timedep && self.nsteps != 1 {
            self.nsteps = 1;
            self.without_effect.push("nsteps".to_owned());
        }
        if !(0.0..1.0).contains(&self.epsi) {
            let why = format!("epsi={} is not between 0 and 1", self.epsi);
            return Err(Failure::new("reading the deck", why));
        }
        Ok(self)
    }
}

/// The value of an assignment, with conversions that name the key on failure.
struct Value<'a>(&'a Assignment);

impl Value<'_> {
    fn refuse(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(format!("reading the deck, line {}", self.0.line), why)
    }

    fn wrong(&self, wanted: impl std::fmt::Display) -> Failure {
        let (key, value) = (&self.0.key, shorten(&self.0.value));
        self.refuse(format_args!("{key}={value}: {wanted} is wanted"))
    }

    /// A count from 1 to `most`.
    fn count(&self, most: usize) -> Result<usize, Failure> {
        match self.0.value.parse() {
            Ok(count) if (1..=most).contains(&count) => Ok(count),
            _ => Err(self.wrong(format_args!("a whole number from 1 to {most}"))),
        }
    }

    /// A choice from 0 to `most`.
    fn choice(&self, most: u8) -> Result<u8, Failure> {
        match self.0.value.parse() {
            Ok(choice) if choice <= most => Ok(choice),
            _ => Err(self.wrong(format_args!("a choice from 0 to {most}"))),
        }
    }

    /// 0, 1 or a Fortran logical.
    fn switch(&self) -> Result<bool, Failure> {
        match self.0.value.to_ascii_lowercase().as_str() {
            "1" | "t" | ".t." | ".true." | "true" => Ok(true),
            "0" | "f" | ".f." | ".false." | "false" => Ok(false),
            _ => Err(self.wrong("0, 1 or a logical")),
        }
    }

    /// A finite real; the exponent may be marked by D.
    fn real(&self) -> Result<f64, Failure> {
        let text = self.0.value.replace(['d', 'D'], "e");
        match text.parse::<f64>() {
            Ok(real) if real.is_finite() => Ok(real),
            _ => Err(self.wrong("a real number")),
        }
    }

    /// A real from 1e-30 to 1e30, so that squares and quotients stay finite.
    fn positive(&self) -> Result<f64, Failure> {
        match self.real()? {
            real if (1e-30..=1e30).contains(&real) => Ok(real),
            _ => Err(self.wrong("a positive real number")),
        }
    }

    /// Any number or logical, for keys whose value is not used.
    fn number(&self) -> Result<(), Failure> {
        self.switch()
            .map(|_| ())
            .or_else(|_| self.real().map(|_| ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Input, Failure> {
        Input::parse(&format!("&invar {body} /"))
    }

    #[test]
    fn an_empty_deck_is_snaps_default() {
        assert_eq!(parse(""), Ok(Input::default()));
    }

    #[test]
    fn every_key_of_a_real_deck_is_taken() {
        let input = parse(
            "npey=1 npez=1 ichunk=4 nthreads=1 nnested=1 ndimen=3 nx=8 ny=6 nz=4 \
             lx=0.8 ly=0.6 lz=.4 nmom=1 nang=10 ng=4 epsi=1.0D-4 iitm=5 oitm=30 \
             timedep=1 tf=1.d0 nsteps=10 mat_opt=1 src_opt=2 scatp=0 fixup=F \
             it_det=0 fluxp=0 soloutp=1 kplane=0 popout=2 swp_typ=0 angcpy=1 multiswp=0",
        )
        .unwrap();
        assert_eq!(input.cells, [8, 6, 4]);
        assert_eq!(input.extent, [0.8, 0.6, 0.4]);
        assert_eq!((input.nang, input.ng, input.epsi), (10, 4, 1e-4));
        assert_eq!((input.iitm, input.oitm), (5, 30));
        assert_eq!((input.timedep, input.tf, input.nsteps), (true, 1.0, 10));
        assert_eq!((input.mat_opt, input.src_opt, input.popout), (1, 2, 2));
        assert!(!input.fixup);
        assert_eq!(input.without_effect.len(), 14);
    }

    #[test]
    fn wrong_values_name_their_key() {
        for body in [
            "nx=0",
            "nx=-4",
            "nx=4097",
            "nx=4.0",
            "nx=99999999999999999999",
            "ny=x",
            "lx=0",
            "lx=-1.0",
            "lx=nan",
            "lx=inf",
            "lz=1e400",
            "epsi=1.0f-4",
            "epsi=0",
            "epsi=2",
            "nang=0",
            "ng=1025",
            "timedep=2",
            "timedep=maybe",
            "mat_opt=3",
            "src_opt=3",
            "popout=9",
            "iitm=0",
            "nmom=many",
            "tf=",
            "ndimen=4",
        ] {
            let failure = parse(body).unwrap_err().to_string();
            let key = body.split('=').next().unwrap();
            assert!(failure.contains(key), "{body}: {failure}");
        }
    }

    #[test]
    fn unknown_keys_are_named() {
        let failure = parse("nx=4 frobnicate=1").unwrap_err().to_string();
        assert!(failure.contains("unknown key 'frobnicate'"), "{failure}");
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(parse("ndimen=1 nx=4 ny=4").is_err());
        assert!(parse("ndimen=2 nx=4 ny=4 nz=2").is_err());
        assert!(parse("timedep=1").is_err());
        assert!(parse("timedep=1 tf=-1.0").is_err());
        let steady = parse("nsteps=7").unwrap();
        assert_eq!(
            (steady.nsteps, steady.without_effect),
            (1, vec!["nsteps".to_owned()])
        );
    }

    #[test]
    fn the_last_assignment_counts() {
        assert_eq!(parse("nx=4 NX=9").unwrap().cells[0], 9);
    }

    /// Pseudo-random numbers, the same in every run (Knuth's MMIX constants).
    fn noise(state: &mut u64) -> usize {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*state >> 33).unwrap()
    }

    #[test]
    fn damaged_decks_are_refused_or_within_range() {
        let deck = include_str!("../inputs/demo.inp");
        let mut state = 1;
        let mut refused = 0;
        for _ in 0..3000 {
            let mut bytes = deck.as_bytes().to_vec();
            for _ in 0..=noise(&mut state) % 4 {
                let at = noise(&mut state) % bytes.len();
                bytes[at] = u8::try_from(32 + noise(&mut state) % 95).unwrap();
            }
            match Input::parse(&String::from_utf8(bytes).unwrap()) {
                Ok(input) => {
                    assert!(input.cells.iter().all(|n| (1..=MAX_CELLS).contains(n)));
                    assert!(input.extent.iter().all(|l| l.is_finite() && *l > 0.0));
                    assert!(!input.timedep || input.tf > 0.0);
                    assert!(input.epsi > 0.0 && input.epsi < 1.0);
                }
                Err(failure) => {
                    assert_eq!(failure.to_string().lines().count(), 3);
                    refused += 1;
                }
            }
        }
        assert!(refused > 300, "{refused}");
    }
}
