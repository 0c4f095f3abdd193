// A view of images, maps and attention made of the dashboard's components, outside the dashboard.
// Each part is a component's markup, style and block of bytes; parts of one kind share a place, and
// the choices above it say which one is shown.

const DARK = { text: "#eceef2", second: "#24272e", line: "#5b616c", primary: "#7fb2ff" };
const LIGHT = { text: "#1a1d23", second: "#f0f2f5", line: "#8a919c", primary: "#1f5fbf" };

// The page behind an element, from the first ancestor that has a colour, across frames.
function isDark(element) {
  for (let one = element; one; one = one.parentElement ?? one.getRootNode().host ?? owner(one)) {
    const [r, g, b, alpha] = pixelOf(getComputedStyle(one).backgroundColor);
    if (alpha > 127) return 0.2126 * r + 0.7152 * g + 0.0722 * b < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

// A colour in any notation, oklch and color() included, as the browser paints it.
function pixelOf(colour) {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data;
}

function owner(element) {
  try {
    return element === document.documentElement ? window.frameElement : null;
  } catch {
    return null; // a frame of another site
  }
}

function themed(host) {
  const ink = isDark(host) ? DARK : LIGHT;
  const values = {
    "font": "system-ui, sans-serif", "text-color": ink.text, "primary-color": ink.primary,
    "secondary-background-color": ink.second, "border-color": ink.line, "base-radius": "6px",
    "button-radius": "6px",
  };
  for (const [name, value] of Object.entries(values)) host.style.setProperty(`--st-${name}`, value);
  Object.assign(host.style, { color: ink.text, fontFamily: values.font, colorScheme: isDark(host) ? "dark" : "light" });
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function made(name, text = "") {
  return Object.assign(document.createElement(name), { textContent: text });
}

function chooser(words, options, changed) {
  const label = made("label", `${words} `);
  const select = made("select");
  select.setAttribute("aria-label", words);
  for (const one of options) select.append(Object.assign(made("option", one), { value: one }));
  select.addEventListener("change", () => changed(select.value));
  label.append(select);
  label.style.marginRight = "1rem";
  return { label, select };
}

// One kind of component; `choose` shows another of its parts.
function section(parts, picked) {
  const { kind, title, html, css } = parts[0];
  const box = made("section");
  const heading = made("h2", title);
  Object.assign(heading.style, { margin: "1rem 0 0.4rem", fontSize: "1rem" });
  const choices = made("div");
  const place = made("div");
  const root = place.attachShadow({ mode: "open" });
  root.innerHTML = html; // the component's own file
  root.prepend(made("style", css));
  box.setAttribute("aria-label", title);
  box.append(heading, choices, place);
  const state = { ...parts[0].choice };
  const show = () => {
    const part = parts.find((one) => Object.entries(state).every(([name, value]) => one.choice[name] === value)) ?? parts[0];
    COMPONENTS[part.component]({ data: bytesOf(part.block), parentElement: root, setTriggerValue: (name, key) => name === "opened" && picked(key) });
  };
  const selects = {};
  for (const name of Object.keys(state)) {
    const options = [...new Set(parts.map((one) => one.choice[name]))];
    const one = chooser(name, options, (value) => ((state[name] = value), show()));
    selects[name] = one.select;
    if (options.length > 1) choices.append(one.label);
  }
  show();
  const choose = (values) => {
    for (const [name, value] of Object.entries(values)) {
      if (!(name in state)) continue;
      state[name] = value;
      selects[name].value = value;
    }
    show();
  };
  return { box, kind, choose };
}

// The theme is that of `outer`, which may hold a heading too.
function view(outer, host, parts) {
  const kinds = [...new Set(parts.map((part) => part.kind))];
  const sections = [];
  const picked = (key) => {
    const values = Object.fromEntries(new URLSearchParams(key));
    for (const one of sections) if (one.kind === "picker") one.choose(values);
  };
  for (const kind of kinds) sections.push(section(parts.filter((part) => part.kind === kind), picked));
  host.replaceChildren(...sections.map((one) => one.box));
  themed(outer);
}

// anywidget's interface.
export default {
  render({ model, el }) {
    const host = made("div");
    el.append(host);
    view(host, host, model.get("parts"));
    requestAnimationFrame(() => themed(host)); // once it is within the page
  },
};
