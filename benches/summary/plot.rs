//! A series on paper whose both axes count powers of ten, so that a power law is a straight line.

use crate::output::Series;

/// A drawing and what is said below it.
pub(crate) struct Plot {
    pub(crate) file: String,
    pub(crate) svg: String,
    pub(crate) caption: String,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Powers of ten between which a side lies.
#[derive(Clone, Copy)]
struct Side {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Side {
    fn around(logs: impl Iterator<Item = f64> + Clone, (from, to): (f64, f64)) -> Self {
        let low = logs.clone().fold(f64::INFINITY, f64::min).floor();
        let high = logs.fold(f64::NEG_INFINITY, f64::max).ceil();
        Self { low, high: high.max(low + 1.0), from, to }
    }

    fn at(self, log: f64) -> f64 {
        self.from + (log - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// The powers in it, at most twenty.
    fn powers(self) -> impl Iterator<Item = f64> {
        (0..20_u32).map(move |n| self.low + f64::from(n)).take_while(move |log| *log <= self.high)
    }
}

/// Draws what is above nothing; the rest has no place on such paper.
pub(crate) fn draw(series: &Series) -> Plot {
    let fits = |(n, cost): &&(f64, f64)| *n > 0.0 && *cost > 0.0;
    let logs: Vec<(f64, f64)> =
        series.points.iter().filter(fits).map(|(n, cost)| (n.log10(), cost.log10())).collect();
    let exponent = slope(&logs);
    let grows = exponent.map_or_else(
        || "too few points for an exponent".to_owned(),
        |exponent| format!("exponent {exponent:.2}"),
    );
    let Series { name, x, unit, .. } = series;
    let caption = format!("{name}: {unit} by {x}, {grows}");
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let file = format!("{}.svg", name.chars().map(word).collect::<String>());
    Plot { file, svg: svg(&logs, (x, unit), &caption), caption }
}

/// The slope of the straight line nearest to the points.
#[expect(clippy::cast_precision_loss, reason = "a number of points")]
fn slope(logs: &[(f64, f64)]) -> Option<f64> {
    let count = logs.len() as f64;
    let mean = |part: fn(&(f64, f64)) -> f64| logs.iter().map(part).sum::<f64>() / count;
    let (mx, my) = (mean(|point| point.0), mean(|point| point.1));
    let across: f64 = logs.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    let along: f64 = logs.iter().map(|(x, _)| (x - mx).powi(2)).sum();
    (logs.len() > 1 && along > 0.0).then(|| across / along)
}

fn svg(logs: &[(f64, f64)], (x, unit): (&str, &str), caption: &str) -> String {
    let wide = Side::around(logs.iter().map(|point| point.0), (LEFT, WIDTH - RIGHT));
    let high = Side::around(logs.iter().map(|point| point.1), (HEIGHT - BOTTOM, TOP));
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    ));
    line(format!(r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>"##));
    line(format!(r#"<text x="{LEFT}" y="22" font-size="14">{}</text>"#, escape(caption)));
    if !logs.is_empty() {
        for log in wide.powers() {
            let at = wide.at(log);
            let (top, bottom, below) = (TOP, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 18.0);
            line(format!(
                r##"<path d="M{at:.1} {top}V{bottom}" stroke="#ddd"/><text x="{at:.1}" y="{below}" text-anchor="middle">{}</text>"##,
                power(log)
            ));
        }
        for log in high.powers() {
            let (at, right, beside) = (high.at(log), WIDTH - RIGHT, LEFT - 8.0);
            line(format!(
                r##"<path d="M{LEFT} {at:.1}H{right}" stroke="#ddd"/><text x="{beside}" y="{:.1}" text-anchor="end">{}</text>"##,
                at + 4.0,
                power(log)
            ));
        }
    }
    let places: Vec<(f64, f64)> = logs.iter().map(|(n, y)| (wide.at(*n), high.at(*y))).collect();
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    line(format!(r##"<polyline points="{}" fill="none" stroke="#06c"/>"##, path.join(" ")));
    for (x, y) in &places {
        line(format!(r##"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="#06c"/>"##));
    }
    let (middle, low) = (WIDTH / 2.0, HEIGHT - 12.0);
    line(format!(r#"<text x="{middle}" y="{low}" text-anchor="middle">{}</text>"#, escape(x)));
    let half = HEIGHT / 2.0;
    line(format!(
        r#"<text x="16" y="{half}" text-anchor="middle" transform="rotate(-90 16 {half})">{}</text>"#,
        escape(unit)
    ));
    line("</svg>".to_owned());
    out
}

fn power(log: f64) -> String {
    if (-3.0..=3.0).contains(&log) { format!("{}", 10_f64.powf(log)) } else { format!("1e{log}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
