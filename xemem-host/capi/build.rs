//! Names the shared library as programs linked with it ask for it.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libxemem.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}
