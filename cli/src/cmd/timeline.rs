//! `create --timeline` and `run --timeline`: where the time went.
//!
//! Pure; the VMM measures (`Started`), `create` adds the whole command. Times
//! are from the VMM's start of building the machine, so the first line holds
//! what was before it: the broker, admission, the start of the process.

use std::time::Duration;

use crate::output;

/// The table: phases with when they ended, and how long each took. `whole` is
/// the command's time.
pub(crate) fn table(phases: &[(String, u64)], whole: Duration) -> String {
    let whole = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX);
    let built = phases.last().map_or(0, |(_, at)| *at);
    let mut rows = vec![vec![
        "before".to_owned(),
        milliseconds(whole.saturating_sub(built)),
        String::new(),
    ]];
    let mut before = 0;
    for (name, at) in phases {
        rows.push(vec![
            name.clone(),
            milliseconds(at.saturating_sub(before)),
            milliseconds(*at),
        ]);
        before = *at;
    }
    rows.push(vec![
        "create".to_owned(),
        milliseconds(whole),
        String::new(),
    ]);
    output::format_table(&["PHASE", "MS", "AT"], &rows)
}

/// The table of a program's start: phases with when they ended, since its request.
pub(crate) fn of_start(phases: &[(String, u64)]) -> String {
    let mut before = 0;
    let rows: Vec<Vec<String>> = phases
        .iter()
        .map(|(name, at)| {
            let took = at.saturating_sub(std::mem::replace(&mut before, *at));
            vec![name.clone(), milliseconds(took), milliseconds(*at)]
        })
        .collect();
    output::format_table(&["PHASE", "MS", "AT"], &rows)
}

fn milliseconds(micros: u64) -> String {
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_has_its_own_time_and_the_sum_is_the_command() {
        let phases = [("vm".to_owned(), 1500), ("memory".to_owned(), 4500)];
        let text = table(&phases, Duration::from_micros(6000));
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            rows,
            [
                vec!["PHASE", "MS", "AT"],
                vec!["before", "1.500"],
                vec!["vm", "1.500", "1.500"],
                vec!["memory", "3.000", "4.500"],
                vec!["create", "6.000"],
            ]
        );
    }
}
