//! One migration of a container at a time: also the end of an earlier one, which a daemon that came back has to bring about, must be
//! over before the next one begins. A second one would take what the first has changed for the container's own.

use std::sync::{Arc, PoisonError};

use super::Context;

/// The claim on a container. Nobody else has one until this is dropped.
pub(crate) struct Moving {
    context: Arc<Context>,
    container: String,
}

impl Moving {
    /// The claim on the container of this id, if nobody has it.
    pub(crate) fn claim(context: &Arc<Context>, container: &str) -> Option<Self> {
        let mut moving = context.moving.lock().unwrap_or_else(PoisonError::into_inner);
        moving
            .insert(container.to_owned())
            .then(|| Self { context: Arc::clone(context), container: container.to_owned() })
    }

    /// Waits for the claim.
    pub(crate) async fn wait(context: &Arc<Context>, container: &str) -> Self {
        loop {
            // Listening begins before the look, so that no release is missed.
            let released = context.released.notified();
            if let Some(moving) = Self::claim(context, container) {
                return moving;
            }
            released.await;
        }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.context.moving.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.container);
        self.context.released.notify_waiters();
    }
}
