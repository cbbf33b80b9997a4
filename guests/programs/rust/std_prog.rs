//! Collections, formatting, files, panics and exit codes with Rust's standard
//! library, linked statically.
//!
//! Usage: std_prog DIRECTORY [EXIT_CODE|panic]

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::panic;
use std::path::Path;
use std::{env, fs, process};

fn use_collections() {
    let mut words: BTreeMap<&str, usize> = BTreeMap::new();
    for word in "the cat and the dog and the bird".split(' ') {
        *words.entry(word).or_default() += 1;
    }
    println!("{words:?}");
    let squares: HashMap<u64, u64> = (0..10_000).map(|n| (n, n * n)).collect();
    let sum: u64 = squares.values().sum();
    println!("squares {} {sum} {:?}", squares.len(), squares.get(&4321));
    let distinct: HashSet<u64> = (0..10_000).map(|n| n * n % 1009).collect();
    println!("residues {}", distinct.len());
    let mut queue: VecDeque<u32> = (0..100).collect();
    queue.rotate_left(37);
    println!("queue {:?} {:?}", queue.front(), queue.back());
    let mut numbers: Vec<u64> = (0..100_000_u64)
        .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    numbers.sort_unstable();
    println!("sorted {} {:016x}", numbers.is_sorted(), numbers[50_000]);
    let big = vec![1_u8; 32 << 20];
    println!("large {}", big.iter().map(|&b| u64::from(b)).sum::<u64>());
}

fn use_formatting() {
    println!("{:>8.3}|{:<8}|{:^8}|{:+}|{:#x}|{:e}", 3.14159, "left", "mid", 5, 48879, 12345.678);
    println!("{} {} {:?} {:?}", 0.1 + 0.2, f64::MIN_POSITIVE, f64::NAN, 1.0e21);
    let mut text = String::new();
    for n in 0..5 {
        write!(text, "{n:02}-").expect("a string takes everything");
    }
    println!("{text} {}", "Grüße, 世界".to_uppercase());
}

fn use_files(directory: &Path) -> std::io::Result<()> {
    let path = directory.join("rust.txt");
    let mut file = fs::File::create(&path)?;
    for n in 0..1000 {
        writeln!(file, "line {n}")?;
    }
    drop(file);
    let lines: Vec<String> = BufReader::new(fs::File::open(&path)?)
        .lines()
        .collect::<Result<_, _>>()?;
    println!("lines {} {:?}", lines.len(), lines.last());
    let mut file = fs::File::open(&path)?;
    file.seek(SeekFrom::End(-9))?;
    let mut tail = String::new();
    file.read_to_string(&mut tail)?;
    println!("tail {tail:?} length {}", fs::metadata(&path)?.len());
    fs::rename(&path, directory.join("moved.txt"))?;
    let names: Vec<_> = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    println!("names {names:?}");
    fs::create_dir_all(directory.join("a/b/c"))?;
    fs::remove_dir_all(directory.join("a"))?;
    fs::remove_file(directory.join("moved.txt"))?;
    let missing = fs::read(directory.join("moved.txt")).map_err(|error| error.kind());
    println!("missing {missing:?}");
    Ok(())
}

fn use_panics() {
    let result = panic::catch_unwind(|| {
        let values = [1, 2, 3];
        let index = env::args().count() + 10;
        values[index]
    });
    println!("caught {}", result.is_err());
    let result = panic::catch_unwind(|| panic::panic_any(42_i32));
    let payload = result.expect_err("it panicked");
    println!("payload {:?}", payload.downcast_ref::<i32>());
}

fn main() {
    // Not the standard hook, whose message holds the thread's number.
    panic::set_hook(Box::new(|info| {
        let line = info.location().map_or(0, |at| at.line());
        println!("panic with a line number {}", line > 0);
    }));
    let mut args = env::args().skip(1);
    let Some(directory) = args.next() else {
        process::exit(2);
    };
    use_collections();
    use_formatting();
    if let Err(error) = use_files(Path::new(&directory)) {
        println!("files: {error}");
    }
    use_panics();
    match args.next().as_deref() {
        None => {}
        Some("panic") => panic!("asked to"),
        Some(code) => process::exit(code.parse().unwrap_or(3)),
    }
}
