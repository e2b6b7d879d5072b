//! Where a child's future runs: on an arbiter per plane, or everything on the current thread.

use std::fmt;

use actix_rt::{Arbiter, ArbiterHandle};

use super::{MakeFuture, Plane, Spawner};

/// Real arbiters, one thread per plane, so that a flood on one cannot delay the timers of another.
pub struct ArbiterSpawner {
    control: ArbiterHandle,
    transport: ArbiterHandle,
    tasks: ArbiterHandle,
    admin: ArbiterHandle,
}

impl ArbiterSpawner {
    /// Starts the four arbiters. They end with the [`actix_rt::System`], or by [`stop`](Self::stop).
    ///
    /// # Panics
    /// Outside of an [`actix_rt::System`], as actix does.
    #[allow(
        clippy::new_without_default,
        reason = "it starts threads, which a default should not"
    )]
    pub fn new() -> Self {
        #[allow(clippy::disallowed_methods, reason = "this is the spawner")]
        let arbiter = || Arbiter::new().handle();
        Self {
            control: arbiter(),
            transport: arbiter(),
            tasks: arbiter(),
            admin: arbiter(),
        }
    }

    /// The arbiter of a plane, for futures that are no actors' (listeners, servers).
    pub fn arbiter(&self, plane: Plane) -> &ArbiterHandle {
        match plane {
            Plane::Control => &self.control,
            Plane::Transport => &self.transport,
            Plane::Tasks => &self.tasks,
            Plane::Admin => &self.admin,
        }
    }

    /// Ends all four threads as soon as their present turns are over.
    pub fn stop(&self) {
        for plane in [Plane::Admin, Plane::Tasks, Plane::Transport, Plane::Control] {
            self.arbiter(plane).stop();
        }
    }
}

impl fmt::Debug for ArbiterSpawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArbiterSpawner").finish_non_exhaustive()
    }
}

impl Spawner for ArbiterSpawner {
    fn spawn(&self, plane: Plane, make: MakeFuture) {
        // A dead arbiter drops the closure, which is how a child reports its death.
        self.arbiter(plane).spawn_fn(move || {
            actix_rt::spawn(make());
        });
    }
}

/// Everything on the thread that spawns: for tests and simulations, where one thread is one order of events.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalSpawner;

impl Spawner for LocalSpawner {
    /// # Panics
    /// Outside of a `LocalSet` or an [`actix_rt::System`].
    fn spawn(&self, _plane: Plane, make: MakeFuture) {
        actix_rt::spawn(make());
    }
}
