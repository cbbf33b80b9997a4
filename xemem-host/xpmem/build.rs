//! Names the shared library as programs linked with XPMEM's ask for it.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libxpmem.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}
