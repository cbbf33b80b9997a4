//! The examples, publishing.

use crate::programs::Program;
use crate::stage::{PATIENCE, Stage};
use xemem_host::wire::Policy;

#[test]
fn the_three_calls_publish_whatever_the_c_library() {
    for compiler in ["cc", "musl-gcc"] {
        let stage = Stage::new();
        let program = Program::example(compiler, "three_calls.c");
        let socket = stage.socket();
        let reader = std::thread::spawn(move || {
            let stream = xemem_host::Stream::attach(&socket, "heat", Policy::Latest, PATIENCE);
            let mut stream = stream.expect("an arena");
            let mut means = Vec::new();
            while let Some(snapshot) = stream.next(Some(PATIENCE)).expect("a snapshot") {
                let field = snapshot.var("temperature").expect("described");
                let cells: Vec<f64> = field
                    .bytes
                    .chunks_exact(8)
                    .map(|cell| f64::from_ne_bytes(cell.try_into().expect("8 bytes")))
                    .collect();
                let mean = cells.iter().sum::<f64>() / cells.len() as f64;
                means.push((snapshot.step(), format!("{mean:.9}")));
            }
            means
        });
        let output = stage.command(&program).args(["200", "64", "32"]).output();
        let output = output.expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("published 200  dropped 0"), "{text}");
        let means = reader.join().expect("it read");
        let (step, mean) = means.last().expect("at least the last one");
        assert_eq!(*step, 200);
        assert!(text.contains(&format!("mean {mean} ")), "{mean}: {text}");
    }
}

#[test]
fn the_papers_names_publish() {
    let stage = Stage::new();
    let program = Program::example("cc", "backed_region.c");
    let output = stage.command(&program).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{words}");
    assert!(!text.contains("nothing to do"), "{text}");
}
