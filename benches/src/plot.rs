//! Plots as SVG: lines over two axes, either of which may be logarithmic.
//!
//! They are written to the folder that `LOCKSTEP_PLOTS` names, and nowhere where it names none.

use std::fmt::Write;
use std::path::PathBuf;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Around the lines: left, top, right, bottom.
const MARGINS: [f64; 4] = [70.0, 40.0, 230.0, 50.0];
const COLOURS: [&str; 8] =
    ["#d1495b", "#00798c", "#edae49", "#66a182", "#2e4057", "#8d5a97", "#888888", "#b36a3c"];

/// One of the two axes: what it shows, from where to where, and where it has labels.
pub struct Axis<'a> {
    /// What is counted.
    pub label: &'a str,
    /// Places with their names, from the smallest to the largest; the first and the last are the axis's ends.
    pub ticks: Vec<(f64, String)>,
    /// As far from 1 to 10 as from 10 to 100.
    pub logarithmic: bool,
}

impl Axis<'_> {
    /// Where a value is, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let (first, last) = (self.ticks[0].0, self.ticks[self.ticks.len() - 1].0);
        let scale = |value: f64| if self.logarithmic { value.ln() } else { value };
        ((scale(value) - scale(first)) / (scale(last) - scale(first))).clamp(0.0, 1.0)
    }
}

/// Ticks of powers of ten that hold these values between them.
pub fn powers_of_ten(values: impl Iterator<Item = f64>) -> Vec<(f64, String)> {
    let (mut low, mut high) = (i32::MAX, i32::MIN);
    for value in values.filter(|value| *value > 0.0) {
        let place = value.log10();
        (low, high) = (low.min(place.floor() as i32), high.max(place.ceil() as i32));
    }
    let name =
        |power: i32| if power < 4 { 10f64.powi(power).to_string() } else { format!("1e{power}") };
    (low..=high.max(low + 1)).map(|power| (10f64.powi(power), name(power))).collect()
}

/// A line and its name.
pub type Line = (String, Vec<(f64, f64)>);

/// Writes `NAME.svg`.
pub fn write(name: &str, title: &str, x: &Axis<'_>, y: &Axis<'_>, lines: &[Line]) {
    let Some(folder) = std::env::var_os("LOCKSTEP_PLOTS").map(PathBuf::from) else { return };
    let path = folder.join(format!("{name}.svg"));
    std::fs::write(&path, svg(title, x, y, lines)).expect("a plot is written");
    println!("plot: {}", path.display());
}

fn svg(title: &str, x: &Axis<'_>, y: &Axis<'_>, lines: &[Line]) -> String {
    let [left, top, right, bottom] = MARGINS;
    let at_x = |value| left + x.place(value) * (WIDTH - left - right);
    let at_y = |value| HEIGHT - bottom - y.place(value) * (HEIGHT - top - bottom);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut text = |x: f64, y: f64, how: &str, text: &str| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {how}>{text}</text>");
    };
    let (low, far) = (HEIGHT - bottom, WIDTH - right);
    text(left, top - 16.0, "font-size=\"14\"", title);
    text((left + far) / 2.0, HEIGHT - 12.0, "text-anchor=\"middle\"", x.label);
    text(left, top - 2.0, "font-size=\"10\"", y.label);
    for (value, name) in &x.ticks {
        text(at_x(*value), low + 16.0, "text-anchor=\"middle\"", name);
    }
    for (value, name) in &y.ticks {
        text(left - 6.0, at_y(*value) + 4.0, "text-anchor=\"end\"", name);
    }
    for (index, (name, _)) in lines.iter().enumerate() {
        let how = format!("fill=\"{}\"", COLOURS[index % COLOURS.len()]);
        text(far + 12.0, top + 12.0 + 18.0 * index as f64, &how, name);
    }
    let grid = x.ticks.iter().map(|(value, _)| (at_x(*value), low, at_x(*value), top));
    let grid = grid.chain(y.ticks.iter().map(|(value, _)| (left, at_y(*value), far, at_y(*value))));
    for (x1, y1, x2, y2) in grid {
        let _ = writeln!(out, "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"#dddddd\"/>");
    }
    for (index, (_, points)) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points: Vec<String> =
            points.iter().map(|&(x, y)| format!("{:.1},{:.1}", at_x(x), at_y(y))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            points.join(" ")
        );
    }
    out + "</svg>\n"
}
