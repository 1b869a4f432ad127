//! Tasks of one core.

use glommio::{executor, spawn_local_into};

/// Schedules `task` on this core, behind all that is ready now. `glommio::spawn_local` would poll
/// it here and now, which makes each reply its own `send` and nearly doubles the cost of a call.
pub fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) {
    spawn_local_into(task, executor().current_task_queue())
        .expect("the queue that runs this task exists")
        .detach();
}
