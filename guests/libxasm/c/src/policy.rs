//! `xasm_set_policy`: a program's own placement policy, as a function of C.
//!
//! Called by C and Fortran programs; [`tell`] by each function here that
//! publishes. What a policy is for and when it runs: `guest::policy`.

// UNSAFETY: calls a function of the program through a pointer.
#![expect(unsafe_code)]

use crate::surface::{answer_int, find};
use crate::table::ARENAS;
use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use guest::Copied;

/// `xasm_policy`: `(data, arena, copied, count)`.
pub type XasmPolicy = unsafe extern "C" fn(*mut c_void, c_int, *const Copied, u64);

/// See `xasm.h`.
///
/// # Safety
/// `policy` is NULL or may be called with `data` after each publish of the arena,
/// by the thread that publishes; no thread publishes it now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_set_policy(
    arena: c_int,
    policy: Option<XasmPolicy>,
    data: *mut c_void,
) -> c_int {
    answer_int((|| {
        let place = find(arena)?;
        guest::policy::check(place.slot)?;
        let policy = policy.map_or(null_mut(), |policy| policy as *mut c_void);
        ARENAS.set_policy(arena, policy, data).map(|()| 0i64)
    })())
}

/// Calls the policy of the arena in `slot`, if it has one, after a publish.
pub(crate) fn tell(slot: u32) {
    let Some((policy, data)) = ARENAS.policy(slot) else {
        return;
    };
    // SAFETY: not NULL, so the address of an `XasmPolicy` (`xasm_set_policy`).
    let policy = unsafe { core::mem::transmute::<*mut c_void, XasmPolicy>(policy) };
    let arena = c_int::try_from(slot).unwrap_or(c_int::MAX);
    // What was published stays so: without its log there are no new wishes.
    let _ = guest::policy::tell(slot, |copied| {
        let count = copied.len() as u64;
        // SAFETY: by the contract of `xasm_set_policy`; `copied` is a live slice
        // of `count` elements, not NULL even if there are none.
        unsafe { policy(data, arena, copied.as_ptr(), count) }
    });
}
