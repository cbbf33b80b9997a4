//! Passes the linker script and refuses to build the kernel with other flags.
//!
//! A `RUSTFLAGS` variable replaces the target flags of `.cargo/config.toml`
//! without a word and would give a position-independent kernel.

fn main() {
    println!("cargo::rerun-if-changed=kernel.ld");
    println!("cargo::rerun-if-changed=src/arch/x86_64/entry.S");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if os != "none" {
        return;
    }
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    assert!(
        flags.contains("relocation-model=static") && flags.contains("code-model=kernel"),
        "the kernel's target flags are missing: unset RUSTFLAGS and build with `cargo kernel`"
    );
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bins=-T{dir}/kernel.ld");
    println!("cargo::rustc-link-arg-bins=--no-dynamic-linker");
    println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
}
