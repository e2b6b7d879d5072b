//! stub
/// stub
pub async fn run(_: &str, _: bool, _: crate::cli::Command) -> u8 {
    69
}
/// stub
pub fn say(t: &str) {
    println!("{t}");
}
