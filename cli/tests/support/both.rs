//! Every check once in an enclave and once on the Linux backend. Part of the test
//! crates whose checks hold for both, beside `producer`.

/// Makes two tests of each check, one per backend.
macro_rules! on_both {
    ($($check:ident)*) => {
        mod enclave {
            $(#[test]
            fn $check() {
                super::$check(crate::Below::Enclave);
            })*
        }

        mod linux {
            $(#[test]
            fn $check() {
                super::$check(crate::Below::Linux);
            })*
        }
    };
}
pub(crate) use on_both;
