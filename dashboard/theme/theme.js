// Tells the server when the page's background has another colour than when it was last drawn.

const shown = new WeakMap();
const EVERY = 400; // milliseconds

export default function (component) {
  const { parentElement: root, setTriggerValue } = component;
  const span = root.querySelector("span");
  const colour = () => getComputedStyle(span).getPropertyValue("--st-background-color").trim();
  clearInterval(shown.get(root)?.timer);
  const seen = { colour: shown.get(root)?.colour ?? colour() };
  seen.timer = setInterval(() => {
    const now = colour();
    if (!now || now === seen.colour) return;
    seen.colour = now;
    setTriggerValue("background", now);
  }, EVERY);
  shown.set(root, seen);
  return () => clearInterval(seen.timer);
}
