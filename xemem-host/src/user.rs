//! Which user a broker is when root starts it, and becoming that user.
//!
//! `main` chooses the user before anything else; the keeper becomes it once it
//! has what takes root: lock, socket and porter ([`crate::keeper`]). Everything
//! that these start is that user from its first instruction on. What holds is
//! read back from the host kernel. It does nothing when another user than root
//! starts a broker. Users are looked up in `/etc/passwd` alone; a host without
//! one, such as a small image of a compute node, has the kernel's nobody.

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// Where users are listed.
const PASSWD: &str = "/etc/passwd";
/// Users that a broker of root becomes, the first that there is.
const PREFERRED: [&str; 2] = ["xemem", "nobody"];
/// Who it becomes where neither is listed: whom Linux itself shows for users that
/// have no number here, `overflowuid` of proc_sys_kernel(5).
const OVERFLOW: User = User {
    uid: 65534,
    gid: 65534,
};

/// A user to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
}

/// Why a broker cannot be the user that it should be.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("there is no user {0} on this host")]
    Unknown(String),
    /// Who is not root stays who he is.
    #[error("only root can start a broker of another user")]
    NotRoot,
    /// The list of users cannot be read.
    #[error("cannot read /etc/passwd: {0}")]
    List(#[from] std::io::Error),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: Errno,
    },
    /// The host kernel says something else than was asked for.
    #[error("the host kernel does not confirm it: {0}")]
    NotConfirmed(String),
}

impl User {
    /// The user that a broker is to become; `None` if it is to stay who it is.
    /// `asked` is a name or a number.
    ///
    /// # Errors
    /// [`UserError`]: no such user, or not root and somebody else is asked for.
    pub fn choose(asked: Option<&str>) -> Result<Option<Self>, UserError> {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root && asked.is_none() {
            return Ok(None);
        }
        let list = match std::fs::read_to_string(PASSWD) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            list => list?,
        };
        let user = choose_from(&list, asked)?;
        match user {
            _ if is_root => Ok(Some(user).filter(|user| user.uid != 0)),
            _ if user.uid == rustix::process::geteuid().as_raw() => Ok(None),
            _ => Err(UserError::NotRoot),
        }
    }

    /// Its number.
    #[must_use]
    pub fn uid(self) -> u32 {
        self.uid
    }

    /// Becomes this user, without groups, capabilities and ways back. Called
    /// while the process has one thread.
    pub(crate) fn become_it(self) -> Result<(), UserError> {
        let failed = |what| move |source| UserError::System { what, source };
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&[]).map_err(failed("leave all groups"))?;
        set_thread_res_gid(gid, gid, gid).map_err(failed("change the group"))?;
        set_thread_res_uid(uid, uid, uid).map_err(failed("change the user"))?;
        drop_capabilities().map_err(failed("drop capabilities"))?;
        set_no_new_privs(true).map_err(failed("renounce new privileges"))?;
        hide().map_err(failed("hide from others of this user"))?;
        let status = std::fs::read_to_string("/proc/self/status")?;
        self.confirm(&status)
    }

    fn confirm(self, status: &str) -> Result<(), UserError> {
        let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
        let none = "0000000000000000";
        let wanted: [(&str, Vec<&str>); 8] = [
            ("Uid:", vec![&uid; 4]),
            ("Gid:", vec![&gid; 4]),
            ("Groups:", vec![]),
            ("CapInh:", vec![none]),
            ("CapPrm:", vec![none]),
            ("CapEff:", vec![none]),
            ("CapAmb:", vec![none]),
            ("NoNewPrivs:", vec!["1"]),
        ];
        for (name, values) in wanted {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let is = line.map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
            if is.as_ref() != Some(&values) {
                let is = is.unwrap_or_default().join(" ");
                return Err(UserError::NotConfirmed(format!("{name} {is}")));
            }
        }
        Ok(())
    }
}

/// Gives up every capability of this thread.
pub(crate) fn drop_capabilities() -> Result<(), Errno> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    set_capabilities(None, sets)
}

/// Lets no other process of the same user look into this one.
pub(crate) fn hide() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn choose_from(list: &str, asked: Option<&str>) -> Result<User, UserError> {
    if let Some(asked) = asked {
        return find(list, asked).ok_or_else(|| UserError::Unknown(asked.to_owned()));
    }
    let mut preferred = PREFERRED.iter().filter_map(|name| find(list, name));
    Ok(preferred.next().unwrap_or(OVERFLOW))
}

/// A user by name or number; a number needs no entry.
fn find(list: &str, asked: &str) -> Option<User> {
    // The last one means "unchanged" to setresuid(2).
    let number = asked.parse().ok().filter(|uid| *uid != u32::MAX);
    let entries = list.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((name, User { uid, gid }))
    });
    let mut found = entries
        .filter(|(name, user)| *name == asked || Some(user.uid) == number)
        .map(|(_, user)| user);
    let by_number = number.map(|uid| User { uid, gid: uid });
    let is_possible = |user: &User| user.uid != u32::MAX && user.gid != u32::MAX;
    found.next().or(by_number).filter(is_possible)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "root:x:0:0:root:/root:/bin/sh\n\
        rubbish\n\
        nobody:x:65534:65533:nobody:/:/bin/false\n";

    fn user(uid: u32, gid: u32) -> User {
        User { uid, gid }
    }

    #[test]
    fn a_user_of_its_own_comes_before_nobody() {
        let chosen = choose_from(LIST, None).expect("nobody");
        assert_eq!(chosen, user(65534, 65533));
        let list = format!("{LIST}xemem:x:900:901::/:/bin/false");
        let chosen = choose_from(&list, None).expect("xemem");
        assert_eq!(chosen, user(900, 901));
    }

    #[test]
    fn without_a_list_of_users_it_is_the_kernels_nobody() {
        for list in ["", "rubbish", "root:x:0:0:root:/root:/bin/sh"] {
            let chosen = choose_from(list, None).expect("the kernel's");
            assert_eq!(chosen, user(65534, 65534), "{list:?}");
        }
    }

    #[test]
    fn names_and_numbers_are_users_and_nothing_else_is() {
        let chosen = |asked| choose_from(LIST, Some(asked));
        assert_eq!(chosen("root").expect("root"), user(0, 0));
        assert_eq!(chosen("65534").expect("listed"), user(65534, 65533));
        assert_eq!(chosen("77").expect("unlisted"), user(77, 77));
        for bad in ["", "nosuch", "-1", "4294967295", "4294967296", "rubbish"] {
            assert!(matches!(chosen(bad), Err(UserError::Unknown(_))), "{bad}");
        }
    }

    #[test]
    fn what_the_host_kernel_does_not_confirm_is_refused() {
        let none = "0000000000000000";
        let status = format!(
            "Uid:\t7 7 7 7\nGid:\t8 8 8 8\nGroups:\t \nNoNewPrivs:\t1\nCapInh:\t{none}\n\
             CapPrm:\t{none}\nCapEff:\t{none}\nCapAmb:\t{none}\n"
        );
        user(7, 8).confirm(&status).expect("confirmed");
        let spoiled = [
            ("7 7 7 7", "7 7 0 7"),
            ("Groups:\t ", "Groups:\t0"),
            ("CapPrm:\t0", "CapPrm:\t1"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("CapAmb:", "Other:"),
        ];
        for (good, bad) in spoiled {
            let refused = user(7, 8).confirm(&status.replace(good, bad));
            assert!(matches!(refused, Err(UserError::NotConfirmed(_))), "{bad}");
        }
    }
}
