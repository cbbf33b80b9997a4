//! A machine that stands still: its vCPUs are kept out of the guest.
//!
//! Called by the control side through [`Machine`]. What decides is
//! [`super::state`]: each vCPU asks there before it enters the guest. The kick
//! brings out those inside. Nothing of the guest's state is touched.

use std::time::{Duration, Instant};

use super::{FREEZE_TIMEOUT, FreezeError, Machine};

impl Machine {
    /// Holds the vCPUs; returns when none is in the guest any more. Forwarded
    /// calls under way in the host end, their answers wait.
    ///
    /// # Errors
    /// [`FreezeError`]; then it runs on.
    pub fn freeze(&self) -> Result<(), FreezeError> {
        const PAUSE: Duration = Duration::from_millis(10);
        self.shared.freeze()?;
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        loop {
            self.rouse();
            if self.shared.wait_outside(PAUSE) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.thaw()?;
                return Err(FreezeError::Stuck);
            }
        }
    }

    /// Lets the vCPUs go on, and kills what was to be killed meanwhile.
    ///
    /// # Errors
    /// [`FreezeError::NotFrozen`].
    pub fn thaw(&self) -> Result<(), FreezeError> {
        for (run, signal) in self.shared.thaw()? {
            self.kill(run, signal);
        }
        Ok(())
    }
}
