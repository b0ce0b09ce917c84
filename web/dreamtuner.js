// What the page shows of this pack beyond the schema: colours of its sockets, folded inputs, a rate of 0 in words, notes.
import { app } from "../../scripts/app.js";

const COLOURS = {
  DREAMTUNER_SUBJECT: "#e9a23b",
  DREAMTUNER_SUBJECT_ENCODER: "#9b7fd6",
  DREAMTUNER_TUNED_SUBJECT: "#d9627d",
};
const OWN_RATE = { en: "method's own", ja: "方式の既定値", zh: "方法默认值", fr: "celui de la méthode", ko: "방식의 기본값" };

let locale = "en";
let notes = {};

function paint() {
  for (const [type, colour] of Object.entries(COLOURS)) {
    LGraphCanvas.link_type_colors[type] = colour;
    app.canvas.default_connection_color_byType[type] = colour;
    document.documentElement.style.setProperty(`--color-datatype-${type}`, colour); // Nodes 2.0
  }
}

app.registerExtension({
  name: "DreamTuner",

  async setup() {
    locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
    const translated = await fetch(new URL(`notes/${locale}.json`, import.meta.url)).catch(() => null);
    if (translated?.ok) notes = await translated.json();
  },

  afterConfigureGraph: paint, // a colour palette, applied late, gives every unknown type none

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("DreamTuner")) return;
    const folded = node.widgets?.filter((widget) => widget.options?.advanced) ?? [];
    for (const widget of folded) widget.advanced = true; // the classic canvas reads it here: Show Advanced
    if (folded.length) node.setSize(node.computeSize());
    if (node.comfyClass !== "DreamTunerSubjectTuning") return;
    const rate = node.widgets?.find((widget) => widget.name === "learning_rate");
    if (!rate) return;
    Object.defineProperty(rate, "_displayValue", {
      get: () => (rate.value ? String(rate.value) : (OWN_RATE[locale] ?? OWN_RATE.en)),
    });
  },

  // The note of a shipped workflow, in the page's language; once, so that an artist's own words stay.
  loadedGraphNode(node) {
    const name = node.properties?.dreamtuner_note;
    if (!name) return;
    delete node.properties.dreamtuner_note;
    if (notes[name]) node.widgets[0].value = notes[name];
  },
});
