export const fixed = (value: number | null | undefined, digits = 3): string =>
  value === null || value === undefined ? "–" : value.toFixed(digits);

export const count = (number: number, one: string, many = `${one}s`): string =>
  `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

export const percent = (share: number): string => `${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)} %`;

export const capitalized = (text: string): string => (text ? text[0].toUpperCase() + text.slice(1) : text);

/** A word for a POSIX shell. */
export const quoted = (text: string): string => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** A cell of a CSV file. A leading formula character gets an apostrophe, because spreadsheets execute formulas. */
export function csvCell(value: string | number | null | undefined): string {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
