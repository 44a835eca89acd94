//! x
use crate::args::DemoArgs;
use crate::failure::Result;
use crate::output::Output;
pub fn run(_: &DemoArgs, _: &Output) -> Result<()> {
    Ok(())
}
